"""A safetensors file that anybody may have made. What it claims is checked before memory is taken for it.

The safetensors library itself refuses a header that is too long or not JSON, and tensors that overlap, leave gaps or
reach past the end of the file. Two things are left to check here: that the path is a regular file (opening a pipe would
wait for ever), and that NumPy has arrays of the dtypes and shapes.
"""

import errno
import json
import math
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.sections import Layout
from numpygpt.shapes import Array

#: The dtypes that we write and read: {name in safetensors: name in NumPy}.
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
#: The upper half of a float32, a dtype that NumPy does not have.
BFLOAT16 = "BF16"
#: The most bytes of a header. The checkpoint of a training run of the largest GPT-2 has less than a million.
LONGEST_HEADER = 2**24
#: The most axes that a NumPy array can have.
MOST_AXES = 64


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in an open file, which is read when it is called."""

    file: "TensorFile"
    name: str

    def __call__(self) -> Array:
        """The whole tensor, as a new array."""
        return self.file.read(self.name)

    def part(self, start: int, stop: int) -> Array:
        """The elements from `start` to before `stop`, counted in C order, as a new array (stop - start)."""
        return self.file.read_part(self.name, start, stop)

    @property
    def layout(self) -> Layout:
        """Its dtype and shape."""
        return self.file.layouts[self.name]


class TensorFile:
    """An open safetensors file.

    path       the file
    kind       what the file is, for messages: "checkpoint"
    metadata   the texts of its header, by name
    layouts    {name of a tensor: its dtype and shape}
    bfloat16   whether tensors of bfloat16 are taken, too; `read` makes float32 of them

    The file stays open, so that all that is read belongs together, even if another file takes its place. Several
    threads may read at a time. Raises InputError for a file that cannot be opened or is not a safetensors file, and for
    tensors that NumPy cannot hold.
    """

    def __init__(self, path: Path, kind: str = "checkpoint", *, bfloat16: bool = False) -> None:
        from safetensors import SafetensorError, safe_open

        self.path, self.kind = path, kind
        try:
            if not path.is_file():
                raise InputError(f"{path} is no regular file; expected a safetensors file")
            self._descriptor = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
            _refuse_a_long_header(self._descriptor, path, kind)
            # Not by a memory map, which would count as memory of the process, and end it if the file is cut meanwhile.
            opened: Any = safe_open(path, framework="numpy", backend="pread")  # Any: its methods are untyped
            self._opened_twice = os.path.samestat(os.fstat(self._descriptor), path.stat())
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"the {kind} {path} is truncated, damaged or no safetensors file ({error}); use another"
            ) from error
        self._file = opened
        self._dtypes = {**DTYPES, BFLOAT16: "bfloat16"} if bfloat16 else DTYPES
        self.metadata: dict[str, str] = opened.metadata() or {}
        self.layouts: dict[str, Layout] = {name: self._layout(name) for name in opened.keys()}  # noqa: SIM118  no dict

    def read(self, name: str) -> Array:
        """The tensor of that name, as a new array. InputError if it cannot be read."""
        from safetensors import SafetensorError

        try:
            if self.layouts[name].dtype == "bfloat16":
                shape = self.layouts[name].shape
                return self.read_part(name, 0, math.prod(shape)).reshape(shape)
            array: Array = self._file.get_tensor(name)
        except (SafetensorError, ValueError, MemoryError, OSError) as error:
            raise InputError(f"{name} of the {self.kind} {self.path} cannot be read: {error}") from error
        return array

    def read_part(self, name: str, start: int, stop: int) -> Array:
        """Some elements of the tensor (`StoredTensor.part`), so that a large one can be looked at a piece at a time.

        InputError if they cannot be read.
        """
        dtype = self.layouts[name].dtype
        part = np.empty(stop - start, "<u2" if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<"))
        left, place = part.view(np.uint8).data, self._places[name] + start * part.itemsize
        try:
            while left.nbytes:  # the system may give less at a time than is asked for
                found = os.preadv(self._descriptor, [left], place)
                if not found:
                    raise OSError(errno.EIO, "the file has become shorter")
                left, place = left[found:], place + found
        except OSError as error:
            raise InputError(f"{name} of the {self.kind} {self.path} cannot be read: {error.strerror}") from error
        return (part.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else part

    @cached_property
    def _places(self) -> dict[str, int]:
        """{name: where the tensor begins in the file, in bytes}; it is in the header, which safetensors has checked."""
        if not self._opened_twice:
            raise InputError(f"the {self.kind} {self.path} was replaced while it was opened; try again")
        length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        header = json.loads(os.pread(self._descriptor, length, 8))
        return {name: 8 + length + header[name]["data_offsets"][0] for name in self.layouts}

    def _layout(self, name: str) -> Layout:
        tensor = self._file.get_slice(name)
        dtype, shape = tensor.get_dtype(), tuple(tensor.get_shape())
        if dtype not in self._dtypes:
            raise InputError(
                f"{name} of the {self.kind} {self.path} is of dtype {dtype}; expected one of: {', '.join(self._dtypes)}"
            )
        if len(shape) > MOST_AXES or max(shape, default=0) > np.iinfo(np.intp).max:
            raise InputError(
                f"{name} of the {self.kind} {self.path} has a shape of {len(shape)} axes, the longest of "
                f"{max(shape)}; NumPy has no such arrays: use another {self.kind}"
            )
        return Layout(self._dtypes[dtype], shape)


def _refuse_a_long_header(descriptor: int, path: Path, kind: str) -> None:
    """safetensors itself takes headers of 100 million bytes, which become gigabytes of Python objects."""
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if length > LONGEST_HEADER:
        raise InputError(
            f"the {kind} {path} is truncated, damaged or no safetensors file (its header would have {length} "
            f"bytes, and that of a model has at most {LONGEST_HEADER}); use another"
        )


def write_tensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file of arrays in C order, little-endian, of DTYPES. OSError if it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path.touch()
    permissions = path.stat().st_mode  # of any new file here; safetensors gives its file narrower ones
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(permissions)
