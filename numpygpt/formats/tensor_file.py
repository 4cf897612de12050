"""A safetensors file that anybody may have made. What it claims is checked before memory is taken for it.

The safetensors library itself refuses a header that is too long or not JSON, and tensors that overlap, leave gaps or
reach past the end of the file. Two things are left to check here: that the path is a regular file (opening a pipe would
wait for ever), and that NumPy has arrays of the dtypes and shapes.
"""

import json
from collections.abc import Mapping
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


class TensorFile:
    """An open safetensors file.

    path       the file
    kind       what the file is, for messages: "checkpoint"
    metadata   the texts of its header, by name
    layouts    {name of a tensor: its dtype and shape}
    bfloat16   whether tensors of bfloat16 are taken, too; `read` makes float32 of them

    The file stays open, so that all that is read belongs together, even if another file takes its place. Raises
    InputError for a file that cannot be opened or is not a safetensors file, and for tensors that NumPy cannot hold.
    """

    def __init__(self, path: Path, kind: str = "checkpoint", *, bfloat16: bool = False) -> None:
        from safetensors import SafetensorError, safe_open

        self.path, self.kind = path, kind
        try:
            if not path.is_file():
                raise InputError(f"{path} is no regular file; expected a safetensors file")
            _refuse_a_long_header(path, kind)
            # Not by a memory map, which would count as memory of the process, and end it if the file is cut meanwhile.
            opened: Any = safe_open(path, framework="numpy", backend="pread")  # Any: its methods are untyped
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
            if self._file.get_slice(name).get_dtype() == BFLOAT16:
                return _read_bfloat16(self.path, name, self.layouts[name].shape)
            array: Array = self._file.get_tensor(name)
        except (SafetensorError, ValueError, MemoryError, OSError) as error:
            raise InputError(f"{name} of the {self.kind} {self.path} cannot be read: {error}") from error
        return array

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


def _refuse_a_long_header(path: Path, kind: str) -> None:
    """safetensors itself takes headers of 100 million bytes, which become gigabytes of Python objects."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LONGEST_HEADER:
        raise InputError(
            f"the {kind} {path} is truncated, damaged or no safetensors file (its header would have {length} "
            f"bytes, and that of a model has at most {LONGEST_HEADER}); use another"
        )


def _read_bfloat16(path: Path, name: str, shape: tuple[int, ...]) -> Array:
    """The tensor as float32. Its place in the file is read off the header, which safetensors has checked."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(length))[name]["data_offsets"]
        halves = np.fromfile(file, "<u2", (end - begin) // 2, offset=begin)
    return (halves.astype(np.uint32) << 16).view(np.float32).reshape(shape)


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
