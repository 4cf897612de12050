"""Checkpoints. A checkpoint is a folder with one safetensors file, which holds a run as named sections.

    DIR/checkpoint.safetensors
        SECTION.NAME, ...               the arrays: model.tok_emb.weight, optimizer.exp_avg.tok_emb.weight, ...
        __metadata__["numpygpt"]        JSON: the values of each section; dtype, shape and SHA-256 of each array

Each part of a run writes a section and reads it again (`numpygpt.sections`). This module does not know what a model or
an optimizer is. It is one file, so that one rename replaces all sections together: even if a save is interrupted, the
folder holds the whole previous checkpoint or the whole new one. An array is read, and checked against its SHA-256, when
it is asked for. Equal sections make equal files, byte for byte.

docs/checkpoint-format.md describes the file for programs in other languages.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.files import replacing
from numpygpt.formats import checkpoint_header, checkpoint_v1
from numpygpt.formats.checkpoint_header import FORMAT, Header, SectionRecord, key_of
from numpygpt.formats.tensor_file import DTYPES, TensorFile, write_tensors
from numpygpt.sections import Layout, Section
from numpygpt.shapes import Array

FILE_NAME = "checkpoint.safetensors"
#: The name of our header among the texts of a safetensors file.
METADATA = "numpygpt"


def write_checkpoint(
    directory: str | os.PathLike[str],
    sections: Mapping[str, Section],
    before_replacing: Callable[[], object] | None = None,
) -> Path:
    """Write DIR/checkpoint.safetensors in the place of an older one, and return its path.

    directory          the folder DIR, which is made if it does not exist
    sections           {name: section}; a name has no dot in it
    before_replacing   is called when the new file is on the disk and was found to be right, just before it replaces the
                       previous one

    What was written is read back from the disk and compared before it replaces the previous checkpoint. If a save fails
    or is interrupted, the previous one stays as it was.

    Raises InputError for a folder that cannot be made or written, for values that JSON cannot hold, for arrays of a
    dtype that safetensors and NumPy do not share, and for floating-point arrays that hold NaN or infinity.
    """
    from numpygpt import __version__

    path = Path(directory) / FILE_NAME
    sections = {name: _in_c_order(name, section) for name, section in sections.items()}
    _refuse_what_is_not_finite(path, sections)
    header = checkpoint_header.written(sections, __version__)

    def check(unfinished: Path) -> None:
        _refuse_what_reads_back_differently(unfinished, path)
        if before_replacing is not None:
            before_replacing()

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, check) as unfinished:
            _write_tensors(unfinished, sections, header)
    except OSError as error:
        raise InputError(f"cannot write the checkpoint {path}: {error.strerror or error}") from error
    return path


def read_checkpoint(path: str | os.PathLike[str]) -> "Checkpoint":
    """The checkpoint of a folder or file. Its header is read and checked now, an array when it is asked for.

    Raises InputError if there is no checkpoint, and for a file that is truncated, damaged, or of another kind or
    version.
    """
    file = Path(path)
    try:
        if file.is_dir():
            file = file / FILE_NAME
        exists = file.exists()
    except OSError as error:
        raise InputError(f"the checkpoint {file} cannot be read: {error.strerror}") from error
    if not exists:
        raise InputError(f"there is no checkpoint {file}; expected a folder that holds a {FILE_NAME}, or such a file")
    tensors = TensorFile(file)
    header = _header_of(tensors)
    _refuse_other_arrays(tensors, header)
    return Checkpoint(file, header.numpygpt_version, header.sections, tensors)


@dataclass(frozen=True)
class Checkpoint:
    """The sections of an open checkpoint.

    path               its file
    numpygpt_version   the version of the numpygpt that wrote it

    The file stays open, so that all that is read belongs together, even if a training replaces the file meanwhile.
    `name in checkpoint` says whether there is a section of that name. Asking for any other section raises InputError.
    """

    path: Path
    numpygpt_version: str
    _sections: Mapping[str, SectionRecord]
    _file: TensorFile

    @property
    def names(self) -> list[str]:
        """The names of the sections, in the order in which they were saved."""
        return list(self._sections)

    def __contains__(self, name: object) -> bool:
        return name in self._sections

    def values(self, name: str) -> dict[str, Any]:
        """A copy of the values of a section. InputError if they are nested too deeply to be copied."""
        try:
            return deepcopy(self._section(name).values)
        except RecursionError as error:
            raise InputError(
                f"the values of the section {name!r} of the checkpoint {self.path} are nested too deeply; use another"
            ) from error

    def layouts(self, name: str) -> dict[str, Layout]:
        """{name: dtype and shape} of a section's arrays; none of them is read."""
        return {array_name: record.layout for array_name, record in self._section(name).arrays.items()}

    def arrays(self, name: str) -> dict[str, Array]:
        """{name: array} of a section, read and checked now; the arrays are new ones.

        Raises InputError, which names the array, if it is not the array that was saved, or has values that are not
        finite.
        """
        return dict(self.each_array(name))

    def each_array(self, name: str) -> Iterator[tuple[str, Array]]:
        """Each name and array of a section, read and checked when its turn comes. InputError as `arrays`."""
        for array_name, record in self._section(name).arrays.items():
            yield array_name, self._read(record)

    def check(self) -> None:
        """Read everything, one array at a time, and keep nothing. Raises InputError as `values` and `arrays` do."""
        for name, section in self._sections.items():
            self.values(name)
            for record in section.arrays.values():
                self._read(record)

    def _section(self, name: str) -> SectionRecord:
        if name not in self._sections:
            raise InputError(
                f"the checkpoint {self.path} has no section {name!r}, only: {', '.join(self._sections) or 'none'}"
            )
        return self._sections[name]

    def _read(self, record: checkpoint_header.ArrayRecord) -> Array:
        array = self._file.read(record.key)
        if not record.is_of(array):
            raise InputError(
                f"the checkpoint {self.path} is damaged: the bytes of {record.key} are not those that were saved; "
                f"use another checkpoint"
            )
        if not _is_finite(array):
            raise InputError(
                f"the checkpoint {self.path} holds values that are not finite in {record.key}; use another checkpoint"
            )
        return array


# Writing


def _in_c_order(section: str, given: Section) -> Section:
    """The section with its arrays as the file holds them: each in C order and little-endian."""
    if not section or "." in section:
        raise InputError(f"the name of a section is {section!r}; expected a text without a dot")
    arrays: dict[str, Array] = {}
    for name, array in given.arrays.items():
        if array.dtype.name not in DTYPES.values():
            raise InputError(
                f"{key_of(section, name)} is of dtype {array.dtype}, which a checkpoint cannot hold; "
                f"expected one of: {', '.join(DTYPES.values())}"
            )
        arrays[name] = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    return Section(given.values, arrays)


def _refuse_what_is_not_finite(path: Path, sections: Mapping[str, Section]) -> None:
    bad = [
        key_of(section, name)
        for section, given in sections.items()
        for name, array in given.arrays.items()
        if not _is_finite(array)
    ]
    if bad:
        raise InputError(
            f"not saved: values that are not finite in {', '.join(bad[:3])}"
            f"{f' and {len(bad) - 3} more' if len(bad) > 3 else ''}; {path} is left as it was"
        )


def _is_finite(array: Array) -> bool:
    return not np.issubdtype(array.dtype, np.inexact) or bool(np.isfinite(array).all())


def _write_tensors(path: Path, sections: Mapping[str, Section], header: str) -> None:
    tensors = {
        key_of(section, name): array for section, given in sections.items() for name, array in given.arrays.items()
    }
    write_tensors(path, tensors, {METADATA: header})


def _refuse_what_reads_back_differently(unfinished: Path, path: Path) -> None:
    try:
        read_checkpoint(unfinished).check()
    except InputError as error:
        raise InputError(
            f"cannot write the checkpoint {path}: what was written reads back differently ({error}); "
            f"the disk may be failing"
        ) from error


# Reading


def _header_of(tensors: TensorFile) -> Header:
    try:
        text = tensors.metadata[METADATA]
        header = json.loads(text)
        found = (header["format"], header["version"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{tensors.path} is no numpygpt checkpoint, or its header is damaged; "
            f"expected one that `numpygpt train` wrote"
        ) from error
    try:
        if found == (FORMAT, checkpoint_header.VERSION):
            return checkpoint_header.read(text, header)
        if found == (FORMAT, checkpoint_v1.VERSION):
            return checkpoint_v1.read(header, tensors.layouts)
    except (InputError, RecursionError) as error:
        raise InputError(
            f"the header of the checkpoint {tensors.path} is damaged: {error}; use another checkpoint"
        ) from error
    raise InputError(
        f"{tensors.path} has format {found[0]!r:.80} version {found[1]!r:.80}; expected {FORMAT!r} version "
        f"{checkpoint_v1.VERSION} or {checkpoint_header.VERSION}: read it with the numpygpt that wrote it"
    )


def _refuse_other_arrays(tensors: TensorFile, header: Header) -> None:
    """InputError unless the header and the file list the same arrays, with the same dtypes and shapes."""
    records = {record.key: record for section in header.sections.values() for record in section.arrays.values()}
    missing = [key for key in records if key not in tensors.layouts]
    unexpected = sorted(key for key in tensors.layouts if key not in records)
    if missing or unexpected:
        raise InputError(
            f"the checkpoint {tensors.path} is damaged: tensors missing {missing}, unexpected {unexpected}"
        )
    for key, record in records.items():
        found, expected = tensors.layouts[key], record.layout
        if found != expected:
            raise InputError(
                f"the checkpoint {tensors.path} is damaged: {key} is {found.dtype} {found.shape}, but "
                f"{expected.dtype} {expected.shape} was saved; use another checkpoint"
            )
