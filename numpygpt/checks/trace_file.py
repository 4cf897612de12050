"""The file of a trace: safetensors, whose metadata say what the tensors are (docs/trace-format.md).

    format, version   "numpygpt.trace", "1"
    config            the configuration of the model, as JSON
    settings          seed, batch, steps, dtype and AdamW's settings, as JSON
    order             the names of the tensors, in the order in which they are computed, one a line
    computed          how each of them is computed, one a line, in the same order
    budgets           how the budgets were found

The text `sha256` of its header is that of all bytes after the header. It is checked where a trace is the reference of a
comparison of files (`TraceFile.refuse_damage`), because a bit that has changed there would blame the candidate.

A budget is a tensor of its own, `budget.FORMAT.NAME`: float64, the norm that the whole tensor may differ by, and then
that of each row.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numpygpt.checks.budgets import FORMATS, Budgets
from numpygpt.checks.compare import Norms
from numpygpt.checks.formulas import formula
from numpygpt.checks.trace import TOKENS, Settings, Trace, checked, is_given
from numpygpt.errors import InputError
from numpygpt.files import replacing
from numpygpt.formats.tensor_file import StoredTensor, TensorFile, write_tensors
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import parameter_shapes
from numpygpt.sections import value_of
from numpygpt.shapes import Array

FORMAT, VERSION = "numpygpt.trace", 1
BUDGET = "budget."
KIND = "trace"
#: The key of the digest in the header, what stands there until it is known, and how many bytes are read at a time.
DIGEST, UNKNOWN, PIECE = "sha256", "0" * 64, 2**24


def write_trace(path: Path, trace: Trace, how: str, budgets: Budgets) -> None:
    """Write the trace, in place of an older one. InputError if the file cannot be written.

    how, budgets   what `numpygpt.checks.budgets.budgets_of` returns
    """
    of_budgets = {
        f"{BUDGET}{format_}.{name}": np.append(allowed.tensor, allowed.rows).astype(np.float64)
        for format_, allowed_by_name in budgets.items()
        for name, allowed in allowed_by_name.items()
    }
    tensors = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in trace.tensors.items()}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(trace.config.to_dict()),
        "settings": json.dumps(trace.settings._asdict()),
        "order": "\n".join(tensors),
        "computed": "\n".join(formula(name) for name in tensors),
        "budgets": how,
        DIGEST: UNKNOWN,
    }
    try:
        with replacing(path) as unfinished:
            write_tensors(unfinished, {**tensors, **of_budgets}, metadata)
            _write_digest(unfinished)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; name another") from error


def _write_digest(path: Path) -> None:
    """Write the digest of the data into the header of a new file, in the place that is kept for it."""
    digest = digest_of_data(path)
    with path.open("r+b") as file:
        header = file.read(8 + int.from_bytes(file.read(8), "little"))
        file.seek(8 + header.index(UNKNOWN.encode()))
        file.write(digest.encode())


def digest_of_data(path: Path) -> str:
    """SHA-256, in hexadecimal digits, of all bytes after the header of a file. OSError if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def has_budget(name: str) -> bool:
    """Whether the tensor of this name may differ by a budget. What is given, and token ids, must be equal."""
    return not is_given(name) and name != TOKENS


class Header(NamedTuple):
    """What the metadata of a trace say.

    computed   {name: how it is computed, in a line}, in the order of the computation
    digest     SHA-256 of the data; "" in a trace that has none
    """

    config: GPTConfig
    settings: Settings
    computed: dict[str, str]
    budgets: str
    digest: str = ""


class TraceFile:
    """An open trace.

    Raises InputError for a file that is damaged, no trace, or of a later version, and for one whose tensors are not
    those that its header names.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise InputError(f"there is no file {path}; write a trace by numpygpt trace --out {path}")
        self.tensors = TensorFile(path, KIND)
        try:
            self.header = _header_of(self.tensors.metadata)
            _refuse_other_tensors(self.header, self.tensors)
        except InputError as error:
            raise InputError(f"the trace {path} cannot be used: {error}") from error

    @property
    def order(self) -> list[str]:
        """The names of the tensors, in the order of the computation."""
        return list(self.header.computed)

    def read(self, name: str) -> Array:
        """The tensor of that name."""
        return self.tensors.read(name)

    def stored(self, name: str) -> StoredTensor:
        """The tensor of that name, not read yet."""
        return StoredTensor(self.tensors, name)

    def given(self) -> dict[str, Array]:
        """What is given: parameters, token ids, dropout masks, prompt."""
        return {name: self.read(name) for name in self.order if is_given(name)}

    def budget(self, format_: str, name: str) -> Norms:
        """How far a candidate in this format may be from the tensor of that name.

        InputError for a budget that is NaN, infinite or negative: it would pass everything, or nothing.
        """
        allowed = self.tensors.read(f"{BUDGET}{format_}.{name}")
        if not (np.isfinite(allowed) & (allowed >= 0)).all():
            raise InputError(
                f"the trace {self.path} is damaged: the budget of {name} in {format_} has numbers that are negative or "
                f"not finite; write it anew"
            )
        return Norms(float(allowed[0]), allowed[1:])

    def refuse_damage(self) -> None:
        """Read the file once more, and raise InputError unless its data have the digest that its header names.

        It takes about a second for a GB. A trace without a digest, which an earlier version wrote, is not read.
        """
        if not self.header.digest:
            return
        try:
            found = digest_of_data(self.path)
        except OSError as error:
            raise InputError(f"the trace {self.path} cannot be read: {error.strerror}; use another") from error
        if found != self.header.digest:
            raise InputError(
                f"the trace {self.path} is damaged: SHA-256 of its data is {found[:8]}..., and its header says "
                f"{self.header.digest[:8]:.8}...; write it anew"
            )


def _header_of(metadata: Mapping[str, str]) -> Header:
    refuse_another_version(metadata)
    found = {name: value_of(metadata, name, str) for name in ("config", "settings", "order", "computed", "budgets")}
    try:
        config, settings = GPTConfig.of(json.loads(found["config"])), _settings_of(json.loads(found["settings"]))
    except (ValueError, RecursionError) as error:
        raise InputError(f"its header is no JSON: {error}") from error
    checked(config, settings)
    names, lines = found["order"].split("\n"), found["computed"].split("\n")
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise InputError(f"its order names {twice!r:.80} more than once; write it anew")
    if len(lines) != len(names):
        raise InputError(
            f"its header names {len(names)} tensors in order, and says of {len(lines)} how they are computed"
        )
    computed = dict(zip(names, lines, strict=True))
    return Header(config, settings, computed, found["budgets"], metadata.get(DIGEST, ""))


def refuse_another_version(metadata: Mapping[str, str]) -> None:
    """Raise InputError for the metadata of no trace, and of a trace of a version that is not known here."""
    if metadata.get("format") != FORMAT:
        found = repr(metadata.get("format"))
        raise InputError(f"its format is {found:.80}; expected {FORMAT!r}: write it by numpygpt trace")
    version = metadata.get("version", "")
    if version != str(VERSION):
        later = version.isdigit() and int(version[:20]) > VERSION
        advice = "read it by a newer numpygpt" if later else "write it anew"
        raise InputError(f"its version is {version!r:.80}; expected '{VERSION}': {advice}")


def _settings_of(values: Any) -> Settings:
    if not isinstance(values, dict):
        raise InputError(f"its settings are a {type(values).__name__}; expected a JSON object")
    defaults = Settings()
    return Settings(*(value_of(values, name, type(getattr(defaults, name))) for name in Settings._fields))


def _refuse_other_tensors(header: Header, tensors: TensorFile) -> None:
    """Every tensor in the order is there, every computed one has its budgets, and every parameter has its shape."""
    missing = [name for name in header.computed if name not in tensors.layouts]
    if missing:
        raise InputError(f"it names {len(missing)} tensors that it does not have, such as {missing[0]}")
    for name, shape in parameter_shapes(header.config).items():
        if name not in header.computed or tensors.layouts[name].shape != shape:
            raise InputError(f"it has no parameter {name} of the shape {shape}")
    for name in header.computed:
        for format_ in FORMATS if has_budget(name) else ():
            budget = f"{BUDGET}{format_}.{name}"
            expected = "float64", (1 + math.prod(tensors.layouts[name].shape[:-1]),)
            if budget not in tensors.layouts or tuple(tensors.layouts[budget]) != expected:
                raise InputError(f"it has no budget for {name} in {format_}, of {expected[1][0]} numbers in float64")
