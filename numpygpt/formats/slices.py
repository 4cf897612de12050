"""A checkpoint in slices: a folder of safetensors files, each with the slices that one process had of the arrays.

    FOLDER/values.json             JSON: "values", the values of each section; "sha256", the SHA-256 of each file
    FOLDER/shard-....safetensors   slices, under SECTION.NAME; the text DCP_SHARDING_INFO of the header says where each
                                   begins: {"model.tok_emb.weight": {"saved_offsets": [3, 0]}}

PyTorch's distributed checkpointing writes the files (`torchgpt.parallel.sharded`). The arrays are put together here, so
whatever reads a checkpoint reads this one, too, in any number of processes and without PyTorch.
"""

import json
import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from hashlib import file_digest
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.formats.tensor_file import TensorFile
from numpygpt.reading import read_file
from numpygpt.sections import Layout
from numpygpt.shapes import Array

VALUES = "values.json"
PLACES = "DCP_SHARDING_INFO"


class Slice(NamedTuple):
    """A part of an array: the file that has it, and where its first element is in the array."""

    file: TensorFile
    begin: tuple[int, ...]


def read_slices(folder: Path) -> "SlicedCheckpoint":
    """The checkpoint in this folder. Its files are checked against their SHA-256 now.

    Raises InputError for a folder that holds none, for files that are missing or damaged, and for slices that do not
    make whole arrays.
    """
    values, checksums = _read_values(folder)
    found: dict[str, list[Slice]] = {}
    for name, checksum in sorted(checksums.items()):
        file = TensorFile(_checked(folder / name, checksum))
        for key, begin in _places(file).items():
            found.setdefault(key, []).append(Slice(file, begin))
    return SlicedCheckpoint(folder, values, found)


class SlicedCheckpoint:
    """The sections of a checkpoint in slices: `numpygpt.sections.SavedSections`."""

    def __init__(self, path: Path, values: Mapping[str, Any], slices: Mapping[str, list[Slice]]) -> None:
        self.path, self._values, self._slices = path, values, slices
        self._layouts = {key: self._layout(key) for key in slices}

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def values(self, name: str) -> dict[str, Any]:
        """A copy of the values of a section. InputError for a section that was not saved."""
        if not isinstance(self._values.get(name), dict):
            raise InputError(f"the checkpoint {self.path} has no section {name!r}, only: {', '.join(self._values)}")
        found: dict[str, Any] = deepcopy(self._values[name])
        return found

    def layouts(self, name: str) -> dict[str, Layout]:
        """{name: dtype and shape} of a section's whole arrays."""
        self.values(name)
        return {key.partition(".")[2]: self._layouts[key] for key in self._keys(name)}

    def arrays(self, name: str) -> dict[str, Array]:
        """{name: whole array} of a section. InputError as `each_array`."""
        return dict(self.each_array(name))

    def each_array(self, name: str) -> Iterator[tuple[str, Array]]:
        """Each name and whole array of a section, put together when its turn comes.

        Raises InputError, which names the array, if it has values that are not finite.
        """
        self.values(name)
        for key in self._keys(name):
            yield key.partition(".")[2], self._whole(key)

    def _keys(self, section: str) -> list[str]:
        return [key for key in self._slices if key.startswith(f"{section}.")]

    def _layout(self, key: str) -> Layout:
        """The dtype and the shape of the whole array. InputError if its slices do not fill it."""
        layouts = [(slice_.file.layouts[key], slice_.begin) for slice_ in self._slices[key]]
        dtypes = {layout.dtype for layout, _ in layouts}
        ranks = {len(layout.shape) for layout, _ in layouts} | {len(begin) for _, begin in layouts}
        if len(dtypes) > 1 or len(ranks) > 1:
            raise InputError(f"the slices of {key} in the checkpoint {self.path} are of different kinds; use another")
        ends = [[first + size for first, size in zip(begin, layout.shape, strict=True)] for layout, begin in layouts]
        shape = tuple(max(sizes) for sizes in zip(*ends, strict=True))
        boxes = [(begin, tuple(end)) for (_, begin), end in zip(layouts, ends, strict=True)]
        filled = sum(math.prod(layout.shape) for layout, _ in layouts) == math.prod(shape)
        if not filled or any(_overlap(*pair) for pair in combinations(boxes, 2)):
            raise InputError(f"the slices of {key} in the checkpoint {self.path} do not fill {shape}; use another")
        return Layout(dtypes.pop(), shape)

    def _whole(self, key: str) -> Array:
        layout = self._layouts[key]
        whole = np.empty(layout.shape, layout.dtype)
        for file, begin in self._slices[key]:
            piece = file.read(key)
            whole[tuple(slice(first, first + size) for first, size in zip(begin, piece.shape, strict=True))] = piece
        if np.issubdtype(whole.dtype, np.inexact) and not np.isfinite(whole).all():
            raise InputError(f"the checkpoint {self.path} holds values that are not finite in {key}; use another")
        return whole


def _overlap(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    """Whether two boxes, each the indices where it begins and ends, have an element in common."""
    return all(
        max(first, others) < min(last, others_last)
        for first, last, others, others_last in zip(*one, *other, strict=True)
    )


def _read_values(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of the sections, and the SHA-256 of each file."""
    try:
        saved = json.loads(read_file(folder / VALUES, "checkpoint"))
        values, checksums = saved["values"], saved["sha256"]
        if not isinstance(values, dict) or not all(isinstance(text, str) for text in checksums.values()):
            raise TypeError("values and sha256 are no dicts")
        if any(Path(name).name != name for name in checksums):
            raise ValueError("a file is not in the folder")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder / VALUES} is not what a checkpoint in slices has: {error!r:.100}") from error
    return values, checksums


def _checked(path: Path, checksum: str) -> Path:
    """The path itself. InputError if the file is not what was written."""
    try:
        with path.open("rb") as file:
            found = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"the checkpoint {path.parent} lacks a file: {path.name}: {error.strerror}") from error
    if found != checksum:
        raise InputError(f"the file {path} is damaged: its SHA-256 is not the one in {VALUES}; use another checkpoint")
    return path


def _places(file: TensorFile) -> dict[str, tuple[int, ...]]:
    """{name: where the slice begins} of each slice of a file."""
    try:
        said = json.loads(file.metadata.get(PLACES, "{}"))
        places = {name: tuple(said[name]["saved_offsets"]) for name in file.layouts}
        if not all(type(first) is int and first >= 0 for place in places.values() for first in place):
            raise ValueError("a place is no number of 0 or more")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{file.path} does not say where its slices are ({error!r:.100}); use another") from error
    return places
