"""PyTorch's own files (.pt, .pth), in which anybody may have hidden anything.

Such a file is a zip archive of a pickle and of the bytes of each tensor. A pickle is a program: it may name any
function of any installed module, and have it called. So a file is opened in three steps, and what it asks for is never
done:

(1) Nothing in the archive may be compressed, and its parts may not be larger together than the file is. So a small
    file cannot become a large one in memory. PyTorch's own files are like this.
(2) The pickle is read as a list of instructions. It may name what NAMES holds, and nothing else. This is less than
    `torch.load(weights_only=True)` allows, which would, for one, fill any amount of memory with a bytearray.
(3) `torch.load(weights_only=True)` makes the objects. The tensors stay in the file until somebody uses them.

Before version 1.6, of 2020, PyTorch wrote pickles without an archive. They are not read: how large a tensor is stands
in the pickle alone, so that nothing could be checked before memory is taken for it.
"""

import pickletools
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpygpt.errors import InputError
from numpygpt.files import replacing
from numpygpt.formats.foreign import ForeignModel
from numpygpt.formats.names import Table
from numpygpt.model.config import GPTConfig
from numpygpt.sections import Layout
from numpygpt.shapes import Array

#: What a pickle may name: the ordered dict, how a tensor or parameter is made of its bytes, and kinds of numbers.
NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(
        f"torch {kind}Storage"
        for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    ),
}
#: The most bytes of a pickle; that of the largest GPT-2 and of its optimizer has half a million.
MOST_BYTES = 2**22
#: How a file begins that PyTorch wrote before version 1.6.
BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
#: In front of each name in the state dict of a compiled model (torch.compile).
COMPILED = "_orig_mod."
#: The dtypes that become float32.
SHORT = ("bfloat16", "float16")


# Reading


def load(path: Path) -> Any:
    """What `torch.save` wrote: tensors, numbers and texts, in dicts and lists.

    Raises InputError for a file that is truncated or was not written by torch.save, and for one that asks for anything
    else; nothing of it is run. The message says so too if PyTorch is not installed.
    """
    torch = pytorch()
    try:
        _refuse_other_names(path, _pickle_of(path))
        with warnings.catch_warnings(action="ignore"):  # about files that are then refused, or read
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # the file decides at which instruction of it, and with which error, the reader fails
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path} is truncated, damaged, or no file of PyTorch's torch.save ({reason:.200}); use another"
        ) from error


def _pickle_of(path: Path) -> bytes:
    """The pickle of the archive, which holds no more than it says, (1)."""
    if not path.is_file():
        raise InputError(f"{path} is no regular file; expected one that torch.save wrote")
    with path.open("rb") as file:
        if file.read(len(BEFORE_1_6)) == BEFORE_1_6:
            raise InputError(
                f"{path} was written by a PyTorch before 1.6, or in that way; write it again with torch.save, after "
                f"torch.load(..., weights_only=True), if you know where it is from"
            )
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise InputError(f"{path} is compressed, which torch.save never does, and is not unpacked; use another")
        if sum(part.file_size for part in parts) > path.stat().st_size:
            raise InputError(f"{path} claims to hold more than its {path.stat().st_size} bytes; use another")
        pickles = [part for part in parts if part.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError(f"{path} is a zip archive with {len(pickles)} data.pkl in it; torch.save writes one")
        if pickles[0].file_size > MOST_BYTES:
            raise InputError(f"the pickle of {path} has more than {MOST_BYTES} bytes; that of a model has fewer")
        return archive.read(pickles[0])


def _refuse_other_names(path: Path, pickle: bytes) -> None:
    """Step (2)."""
    named = {str(argument) for operation, argument, _ in pickletools.genops(pickle) if operation.name == "GLOBAL"}
    others = sorted(name.replace(" ", ".") for name in named - NAMES)
    if others:
        raise InputError(
            f"{path} asks for {', '.join(others[:3])}, which no weights need, and which may run a program; "
            f"nothing of it was run: use a file that holds a state dict alone"
        )


def entries(value: Any, what: str) -> dict[str, Any]:
    """The entries of a dict in a loaded file. InputError if it is none, or if its keys are no texts.

    They are taken without a method of the dict itself, because a file can put anything in the place of these.
    """
    if not isinstance(value, dict):
        raise InputError(f"{what} is a {type(value).__name__}; expected a dict")
    found = dict(dict.items(value))
    others = [key for key in found if not isinstance(key, str)]
    if others:
        raise InputError(f"{what} has the key {others[0]!r:.80}; expected texts")
    return found


class TorchTensors:
    """The tensors of a state dict, under the names that they have in a model that is not compiled.

    layouts   {name: dtype and shape} of the arrays that `read` returns; values of 16 bits become float32
    short     the dtypes of 16 bits among the tensors

    Raises InputError for what is no plain tensor: one whose elements are shared, sparse, quantized or elsewhere.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = {name.removeprefix(COMPILED): tensor for name, tensor in tensors.items()}
        for name, tensor in self._tensors.items():
            _refuse_what_is_no_plain_tensor(name, tensor)
        dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self._tensors.items()}
        self.short = sorted(set(dtypes.values()) & set(SHORT))
        self.layouts = {
            name: Layout("float32" if dtypes[name] in SHORT else dtypes[name], tuple(tensor.shape))
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> Array:
        """The tensor of that name: a view of the file, or new values if it had 16 bits."""
        tensor = self._tensors[name].detach()
        array: Array = (tensor.float() if self.layouts[name].dtype == "float32" else tensor).numpy()
        return array

    def are_one(self, *names: str) -> bool:
        """Whether these names stand for one tensor, as those of tied weights do."""
        places = {
            (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            for tensor in (self._tensors.get(name) for name in names)
            if tensor is not None
        }
        return len(places) == 1 and all(name in self._tensors for name in names)


def _refuse_what_is_no_plain_tensor(name: str, tensor: Any) -> None:
    torch = pytorch()
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{name} is a {type(tensor).__name__}; expected a tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"{name} is of shape {tuple(tensor.shape)}, but it has fewer values than that")


def foreign_model(
    path: Path,
    kind: str,
    config: GPTConfig,
    table: Table,
    tensors: TorchTensors,
    *,
    tokenizer: str | None,
    notes: Sequence[str],
) -> ForeignModel:
    """The model of these tensors. InputError if they are not those of the configuration, or more than those."""
    short = [f"weights of {' and '.join(tensors.short)} are read as float32"] if tensors.short else []
    model = ForeignModel(path, kind, config, table, tensors, tokenizer=tokenizer, notes=(*notes, *short))
    surplus = table.surplus(config, tensors.layouts, tensors.read)
    if surplus:
        raise InputError(
            f"the checkpoint {path} cannot be used: it has a {surplus[0]} of its own, which its other tensors, or the "
            f"configuration in it, leave out; use another"
        )
    return model


# Writing


def save(path: Path, contents: Any) -> None:
    """Write a file by `torch.save`, in place of an older one. InputError if that fails."""
    torch = pytorch()
    try:
        with replacing(path) as unfinished:
            torch.save(contents, unfinished)
    except (OSError, RuntimeError) as error:  # PyTorch's writer in C++ raises a RuntimeError where a disk is full
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"cannot write {path}: {reason:.200}; name another") from error


def state_dict_of(arrays: Mapping[str, Array]) -> "OrderedDict[str, Any]":
    """The arrays as tensors, by name. One array under two names, as of tied weights, is one tensor under two names."""
    torch = pytorch()
    tensors: dict[int, Any] = {}
    for array in arrays.values():
        if id(array) not in tensors:
            tensors[id(array)] = torch.from_numpy(array if array.flags.writeable else array.copy())
    return OrderedDict((name, tensors[id(array)]) for name, array in arrays.items())


def pytorch() -> Any:
    """PyTorch. InputError, with the line that installs it, if it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            "PyTorch is not installed, and its files (.pt, .pth) are read and written with it: "
            "pip install 'numpygpt[torch]'"
        ) from error
    return torch
