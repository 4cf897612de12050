"""Checkpoints: a folder with one safetensors file that holds a model, and what its training needs to go on.

    DIR/checkpoint.safetensors
        tok_emb.weight, ...             the model's weights under their PyTorch names; tied weights once
        optimizer.exp_avg.NAME, ...     the optimizer's moments of parameter NAME
        random.NAME                     states of random generators
        __metadata__["numpygpt"]        JSON: the format's name and version, the contents and their SHA-256
            contents                    configuration, tokenizer, training options and history, numbers of
                                        the optimizer, numpygpt's version, the SHA-256 of each tensor's bytes

One file, so that one rename replaces model, optimizer and random state together: whatever interrupts a save,
the folder holds the previous checkpoint or the new one, whole. Tensors are read one at a time when they are
asked for, and checked against their SHA-256 then. Equal states make equal files, byte for byte.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.files import replacing
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import Array
from numpygpt.training.adamw import AdamW

FILE_NAME = "checkpoint.safetensors"
FORMAT = "numpygpt checkpoint"
FORMAT_VERSION = 1

OPTIMIZER = "optimizer."
RANDOM = "random."


def save_checkpoint(
    directory: str | os.PathLike[str],
    model: GPTModel,
    *,
    optimizer: AdamW | None = None,
    random_states: Mapping[str, Array] | None = None,
    tokenizer: str | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write DIR/checkpoint.safetensors, in place of one that is there, and return its path.

    directory       is made where needed
    model           float32 or float64
    optimizer       its moments, step and hyper-parameters
    random_states   {name: state} of random generators, as arrays (`TorchGenerator.to_torch_state`)
    tokenizer       the name for `get_tokenizer`
    training        whatever else the run wants back, of types that JSON has: options, step, loss history, ...

    A save that fails or is interrupted leaves the previous checkpoint as it was. Raises InputError for a
    complex model and for a folder that cannot be made or written.
    """
    from numpygpt import __version__

    if model.dtype not in (np.float32, np.float64):
        raise InputError(f"a model of {model.dtype} cannot be saved; expected float32 or float64")
    moments, numbers = _moments_and_numbers(optimizer)
    tensors = {
        **model.named_parameters(),
        **{f"{OPTIMIZER}{name}": array for name, array in moments.items()},
        **{f"{RANDOM}{name}": array for name, array in (random_states or {}).items()},
    }
    contents = {
        "config": model.config.to_dict(),
        "tokenizer": tokenizer,
        "training": dict(training or {}),
        "optimizer": numbers,
        "numpygpt_version": __version__,
    }
    path = Path(directory) / FILE_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            _write_tensors(unfinished, tensors, contents)
    except OSError as error:
        raise InputError(f"cannot write the checkpoint {path}: {error.strerror or error}") from error
    return path


def _moments_and_numbers(optimizer: AdamW | None) -> tuple[dict[str, Array], dict[str, Any] | None]:
    """An optimizer's state as {"exp_avg.NAME": array, ...} and the rest of it; None without an optimizer."""
    if optimizer is None:
        return {}, None
    state = optimizer.state_dict()
    numbers = {key: value for key, value in state.items() if not isinstance(value, Mapping)}
    moments = {f"{key}.{name}": array for key in state if key not in numbers for name, array in state[key].items()}
    return moments, numbers


def load_checkpoint(path: str | os.PathLike[str]) -> "Checkpoint":
    """The checkpoint of a folder or file. Reads its header; weights and moments are read when asked for.

    Raises InputError where there is no checkpoint, and for a file that is truncated, damaged, or of another
    kind or version.
    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE_NAME
    if not file.exists():
        raise InputError(f"there is no checkpoint {file}; expected a folder that holds a {FILE_NAME}, or such a file")
    tensors = _TensorFile(file)
    contents = tensors.contents
    return Checkpoint(
        path=file,
        config=GPTConfig.of(contents["config"]),
        tokenizer=contents["tokenizer"],
        training=contents["training"],
        numpygpt_version=contents["numpygpt_version"],
        _tensors=tensors,
    )


def load_model(path: str | os.PathLike[str], dtype: Any = None) -> GPTModel:
    """The model of a checkpoint (folder or file), in its dtype or in `dtype`. Errors as `load_checkpoint`."""
    return load_checkpoint(path).model(dtype)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself, and the way to its tensors.

    The file stays open, so that everything read belongs together even when a running training replaces it.
    Each method raises InputError for a tensor whose bytes are not those that were saved, naming it, and for
    names or shapes that do not fit, listing them.
    """

    path: Path
    config: GPTConfig
    tokenizer: str | None
    training: dict[str, Any]
    numpygpt_version: str
    _tensors: "_TensorFile"

    def model(self, dtype: Any = None, **options: Any) -> GPTModel:
        """A model with the saved weights, in their own dtype or in `dtype`; the options are `GPTModel`'s."""
        names = [name for name in self._tensors.names if not name.startswith((OPTIMIZER, RANDOM))]
        weights = {name: self._tensors.read(name) for name in names}
        with self._named_in_errors():
            return GPTModel.from_state_dict(self.config, weights, dtype, **options)

    @property
    def has_optimizer(self) -> bool:
        """Whether `restore_optimizer` has something to restore."""
        return self._tensors.contents["optimizer"] is not None

    def restore_optimizer(self, optimizer: AdamW) -> None:
        """Give `optimizer` the saved step, moments and hyper-parameters. InputError where none were saved."""
        if not self.has_optimizer:
            raise InputError(
                f"the checkpoint {self.path} holds no optimizer; its weights can only start a new training"
            )
        state: dict[str, Any] = dict(self._tensors.contents["optimizer"])
        for key, array in self._under(OPTIMIZER).items():
            moments, name = key.split(".", maxsplit=1)
            state.setdefault(moments, {})[name] = array
        with self._named_in_errors():
            optimizer.load_state_dict(state)

    def random_states(self) -> dict[str, Array]:
        """{name: state} of the random generators, as they were saved."""
        return self._under(RANDOM)

    def _under(self, prefix: str) -> dict[str, Array]:
        names = [name for name in self._tensors.names if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._tensors.read(name) for name in names}

    @contextmanager
    def _named_in_errors(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            raise InputError(f"the checkpoint {self.path} cannot be used: {error}") from error


# The file's format


def _write_tensors(path: Path, tensors: Mapping[str, Array], contents: Mapping[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # safetensors writes an array's memory as it lies, whatever its strides
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    contents = {
        **contents,
        "sha256": {name: sha256(array.data).hexdigest() for name, array in arrays.items()},
    }
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "sha256": _sha256_of_json(contents),
        "contents": contents,
    }
    path.touch()
    permissions = path.stat().st_mode  # those of any new file here; safetensors makes its own private
    try:
        save_file(arrays, path, metadata={"numpygpt": json.dumps(header)})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(permissions)


class _TensorFile:
    """An open checkpoint file: its contents, checked, and its tensors, checked as they are read.

    Raises InputError for a file that is not what `_write_tensors` wrote.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            self._file: Any = safe_open(path, framework="numpy")  # Any: its methods are untyped
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"the checkpoint {path} is truncated, damaged or no safetensors file ({error}); use another"
            ) from error
        self.contents = self._read_contents()
        self.names = list(self.contents["sha256"])
        self._refuse_other_names()

    def read(self, name: str) -> Array:
        """The tensor of that name."""
        array: Array = self._file.get_tensor(name)
        if sha256(array.data).hexdigest() != self.contents["sha256"][name]:
            raise InputError(
                f"the checkpoint {self.path} is damaged: the bytes of {name} are not those that were saved; "
                f"use another checkpoint"
            )
        return array

    def _read_contents(self) -> dict[str, Any]:
        try:
            header = json.loads((self._file.metadata() or {})["numpygpt"])
            found = (header["format"], header["version"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.path} is no numpygpt checkpoint, or its header is damaged; "
                f"expected one that `numpygpt train` wrote"
            ) from error
        if found != (FORMAT, FORMAT_VERSION):
            raise InputError(
                f"{self.path} has format {found[0]!r} version {found[1]!r}; "
                f"expected {FORMAT!r} version {FORMAT_VERSION}: read it with the numpygpt that wrote it"
            )
        if header.get("sha256") != _sha256_of_json(header.get("contents")):
            raise InputError(f"the header of the checkpoint {self.path} is damaged; use another checkpoint")
        return header["contents"]

    def _refuse_other_names(self) -> None:
        found = set(self._file.keys())
        missing = [name for name in self.names if name not in found]
        unexpected = sorted(found.difference(self.names))
        if missing or unexpected:
            raise InputError(
                f"the checkpoint {self.path} is damaged: tensors missing {missing}, unexpected {unexpected}"
            )


def _sha256_of_json(contents: Any) -> str:
    return sha256(json.dumps(contents).encode()).hexdigest()
