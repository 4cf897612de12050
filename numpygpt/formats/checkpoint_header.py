"""The header of a checkpoint. It says what the checkpoint holds, and is sealed by a SHA-256.

    {"format": "numpygpt checkpoint", "version": 2, "numpygpt_version": "0.1.0",
     "sections": {SECTION: {"values": {...}, "arrays": {NAME: {"dtype": "F32", "shape": [11, 6], "sha256": ...}}}},
     "sha256": ...}

The seal is the last entry. It is the SHA-256 of the text itself without that entry, so a reader can check it without
writing the JSON again. docs/checkpoint-format.md describes the whole file.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple

from numpygpt.errors import InputError
from numpygpt.formats.tensor_file import DTYPES
from numpygpt.sections import Layout, Section, value_of
from numpygpt.shapes import Array

FORMAT = "numpygpt checkpoint"
VERSION = 2

SAFETENSORS_NAMES = {numpy_name: name for name, numpy_name in DTYPES.items()}
SEAL_LENGTH = len(',"sha256":"' + 64 * "0" + '"}')


class ArrayRecord(NamedTuple):
    """What the header says of one array.

    key         its name in the safetensors file
    layout      its dtype and shape
    sha256      the SHA-256 of its dtype and shape (if `described`) and its bytes
    described   whether dtype and shape are hashed too; in version 1 they are not
    """

    key: str
    layout: Layout
    sha256: str
    described: bool = True

    def is_of(self, array: Array) -> bool:
        """Whether this is the array that was saved."""
        return self.sha256 == sha256_of(array, described=self.described)


class SectionRecord(NamedTuple):
    """A section's values, and what the header says of its arrays."""

    values: dict[str, Any]
    arrays: dict[str, ArrayRecord]


class Header(NamedTuple):
    """The header of a checkpoint of either version.

    numpygpt_version   the version of the numpygpt that wrote the checkpoint
    sections           {name: section}, in the order in which they were saved
    """

    numpygpt_version: str
    sections: dict[str, SectionRecord]


def sha256_of(array: Array, *, described: bool = True) -> str:
    """The SHA-256 of an array in C order: of the text of its dtype and shape, such as `["F32",[11,6]]`, and its bytes.

    described   whether the text is hashed too
    """
    digest = sha256()
    if described:
        digest.update(json.dumps([SAFETENSORS_NAMES[array.dtype.name], array.shape], separators=(",", ":")).encode())
    digest.update(array.data)
    return digest.hexdigest()


def key_of(section: str, name: str) -> str:
    """The name that an array of a section has in the safetensors file."""
    return f"{section}.{name}"


def written(sections: Mapping[str, Section], numpygpt_version: str) -> str:
    """The sealed header of these sections, whose arrays are in C order. InputError for values that JSON cannot hold."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "numpygpt_version": numpygpt_version,
        "sections": {
            name: {"values": dict(section.values), "arrays": {n: _described(a) for n, a in section.arrays.items()}}
            for name, section in sections.items()
        },
    }
    try:
        return _sealed(json.dumps(header, separators=(",", ":")))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the values of a checkpoint are no JSON: {error}") from error


def _described(array: Array) -> dict[str, Any]:
    return {
        "dtype": SAFETENSORS_NAMES[array.dtype.name],
        "shape": list(array.shape),
        "sha256": sha256_of(array),
    }


def read(text: str, header: Mapping[str, Any]) -> Header:
    """The header that this text holds.

    header   what `json.loads` makes of the text

    Raises InputError if the seal does not fit, and if anything is missing or of another type. Its message does not name
    the file.
    """
    if text != _sealed(text[:-SEAL_LENGTH] + "}"):
        raise InputError("its seal does not fit")
    sections = value_of(header, "sections", dict)
    return Header(
        value_of(header, "numpygpt_version", str),
        {name: _section(name, value_of(sections, name, dict)) for name in sections},
    )


def _section(section: str, record: Mapping[str, Any]) -> SectionRecord:
    arrays = value_of(record, "arrays", dict)
    return SectionRecord(
        value_of(record, "values", dict),
        {name: _array(key_of(section, name), value_of(arrays, name, dict)) for name in arrays},
    )


def _array(key: str, record: Mapping[str, Any]) -> ArrayRecord:
    dtype, shape = value_of(record, "dtype", str), value_of(record, "shape", list)
    if dtype not in DTYPES:
        raise InputError(f"the dtype of {key} is {dtype!r:.80}; expected one of: {', '.join(DTYPES)}")
    if not all(type(length) is int for length in shape):
        raise InputError(f"the shape of {key} is {shape!r:.80}; expected integers")
    return ArrayRecord(key, Layout(DTYPES[dtype], tuple(shape)), value_of(record, "sha256", str))


def _sealed(text: str) -> str:
    return text[:-1] + _seal(sha256(text.encode()).hexdigest())


def _seal(digest: str) -> str:
    return f',"sha256":"{digest}"}}'
