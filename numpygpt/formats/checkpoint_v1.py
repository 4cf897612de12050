"""Version 1 of the checkpoint, which is read as the sections of version 2.

    {"format": "numpygpt checkpoint", "version": 1, "sha256": of `json.dumps(contents)`, "contents": {
        "config": {...}, "tokenizer": ..., "training": {...}, "optimizer": {...} or null, "numpygpt_version": ...,
        "sha256": {KEY: of the tensor's bytes alone}}}

The keys of the model's weights are their names. All other keys begin with `optimizer.` or `random.`. An optimizer of
version 1 had no groups.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from numpygpt.errors import InputError
from numpygpt.formats.checkpoint_header import ArrayRecord, Header, SectionRecord
from numpygpt.sections import Layout, value_of

VERSION = 1

OPTIMIZER = "optimizer."
RANDOM = "random."


def read(header: Mapping[str, Any], layouts: Mapping[str, Layout]) -> Header:
    """The header of version 1 that is in these JSON values.

    layouts   the dtypes and shapes of the file's tensors

    Raises InputError as `checkpoint_header.read` does.
    """
    contents = value_of(header, "contents", dict)
    if header.get("sha256") != sha256(json.dumps(contents).encode()).hexdigest():
        raise InputError("its seal does not fit")
    hashes = value_of(contents, "sha256", dict)
    arrays = {key: _array(key, layouts, hashes) for key in hashes}
    sections = {
        "model": SectionRecord(
            {name: contents.get(name) for name in ("config", "tokenizer")},
            {key: array for key, array in arrays.items() if not key.startswith((OPTIMIZER, RANDOM))},
        )
    }
    optimizer = value_of(contents, "optimizer", dict, type(None))
    if optimizer is not None:
        sections["optimizer"] = SectionRecord({**optimizer, "groups": []}, _under(OPTIMIZER, arrays))
    random_states = _under(RANDOM, arrays)
    if random_states:
        sections["random"] = SectionRecord({}, random_states)
    training = dict(value_of(contents, "training", dict))
    if "position" in training:
        sections["data"] = SectionRecord({"position": training.pop("position")}, {})
    if training:
        sections["run"] = SectionRecord(training, {})
    return Header(value_of(contents, "numpygpt_version", str), sections)


def _array(key: str, layouts: Mapping[str, Layout], hashes: Mapping[str, Any]) -> ArrayRecord:
    layout = layouts.get(key, Layout("none", ()))  # a key that the file lacks is refused later, together with others
    return ArrayRecord(key, layout, value_of(hashes, key, str), described=False)


def _under(prefix: str, arrays: Mapping[str, ArrayRecord]) -> dict[str, ArrayRecord]:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
