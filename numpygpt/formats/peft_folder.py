"""Adapters of low rank in the folders of the library peft, read and written.

    adapter_config.json         rank, α, dropout, and which projections have a path
    adapter_model.safetensors   the matrices A (R, D) and B (F, R) of each path

A tensor's name is `base_model.model.PROJECTION.lora_A.weight`. The names of the projections are ours, which are
torchgpt's too, or those of Hugging Face's GPT-2. There one projection makes queries, keys and values. Its path is read
as three: each has the same A, and its third of the rows of B. Three of ours are written as one path with their ranks
added up: the A below each other, and B with a block for each of the three. If all have the same A, the rank stays.

A path of ours knows its scale s alone. It is written as α = s R, which peft divides by R again.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.files import replacing_folder
from numpygpt.formats import hugging_face
from numpygpt.formats.tensor_file import TensorFile, write_tensors
from numpygpt.reading import read_json
from numpygpt.shapes import Array, Inexact

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
#: The most bytes of a configuration; peft writes about a thousand.
MOST_BYTES = 2**22
#: No α is as large as this one.
LARGEST = 1e30
#: Whose names of projections a folder has.
OURS, HUGGING_FACE = "ours", "hugging-face"
#: In the metadata of the tensors: the SHA-256 of the model that the adapter was trained on.
BASE_SHA256 = "base_sha256"

_MATRIX = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")
_BLOCK = re.compile(r"\.(\d+)\.")
#: What changes the formula of a path. A folder with one of these is refused, unless it has this value.
_PLAIN: Mapping[str, Sequence[Any]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "use_bdlora": (None, False),
    "use_qalora": (None, False),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "corda_config": (None,),
    "kasa_config": (None,),
    "lora_ga_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "loftq_config": (None, {}),
    # The other ways to begin also change the base, so that the matrices belong to a base that is not in the folder.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", None),
}
#: The files of a folder; peft adds a page for people.
WRITTEN = {CONFIG, WEIGHTS, "README.md"}
#: Expressions in alpha_pattern: names with dots, and what peft's users write in them.
_PLAIN_PATTERN = re.compile(r"[\w.|^$\\d+*-]{1,200}")


class LowRank(NamedTuple):
    """A path beside a projection."""

    A: Inexact[Array, "R D"]
    B: Inexact[Array, "F R"]
    scale: float


class Adapter(NamedTuple):
    """What a folder holds.

    paths         by our names of the projections
    drop_rate     of dropout on the input of every path
    base_sha256   of the model that it was trained on, if the folder says so
    """

    paths: Mapping[str, LowRank]
    drop_rate: float
    base_sha256: str | None = None


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder, in float32 or the float64 it has.

    Raises InputError for a folder without an adapter, for one of another kind than LoRA, for matrices that are missing
    or do not fit each other, and for values that are not finite.
    """
    _refuse_without_adapter(folder)
    config = read_json(folder / CONFIG, "adapter's configuration", MOST_BYTES)
    _refuse_other_kinds(config, folder)
    file = TensorFile(folder / WEIGHTS, "adapter", bfloat16=True)
    paths: dict[str, LowRank] = {}
    for module, matrices in _by_module(file).items():
        A, B = (_read(file, name) for name in matrices)
        if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or not len(A):
            raise InputError(
                f"the adapter {folder} has A {A.shape} and B {B.shape} for {module}; "
                f"expected (R, D) and (F, R) with the same R of 1 or more"
            )
        paths.update(_as_ours(module, LowRank(A, B, _scale(config, module, len(A), folder))))
    rate = _number(config, "lora_dropout", folder, default=0.0)
    if not 0 <= rate < 1:
        raise InputError(f"lora_dropout of the adapter {folder} is {rate}; expected a rate from 0 to below 1")
    return Adapter(paths, rate, file.metadata.get(BASE_SHA256))


def write_adapter(folder: Path, adapter: Adapter, *, names: str = OURS) -> None:
    """Write the adapter to a new folder, or to one that holds an adapter and nothing else, which is replaced whole.

    names   "ours", which peft finds in torchgpt's model, or "hugging-face", which it finds in GPT2LMHeadModel

    Raises InputError for a folder with other files in it, and if it cannot be written.
    """
    if names not in (OURS, HUGGING_FACE):
        raise InputError(f"names is {names!r}; expected {OURS!r} or {HUGGING_FACE!r}")
    paths = dict(adapter.paths) if names == OURS else _as_theirs(adapter.paths)
    tensors = {
        f"{PREFIX}{module}.lora_{matrix}.weight": np.ascontiguousarray(getattr(path, matrix))
        for module, path in paths.items()
        for matrix in "AB"
    }
    metadata = {} if adapter.base_sha256 is None else {BASE_SHA256: adapter.base_sha256}
    refuse_other_files(folder)
    try:
        with replacing_folder(folder) as unfinished:
            text = json.dumps(peft_config(paths, adapter.drop_rate, names), indent=2) + "\n"
            (unfinished / CONFIG).write_text(text, encoding="utf-8")
            write_tensors(unfinished / WEIGHTS, tensors, metadata)
    except OSError as error:
        raise InputError(f"cannot write the adapter {folder}: {error.strerror or error}") from error


def _refuse_without_adapter(folder: Path) -> None:
    """InputError for a folder without an adapter. A folder in it that has one is named, as that of a run has."""
    if not folder.is_dir() or (folder / CONFIG).exists():
        return
    within = sorted(folder.glob(f"*/{CONFIG}"))
    hint = f"; name {within[0].parent}" if within else ""
    raise InputError(f"the folder {folder} holds no adapter: it has no {CONFIG}{hint}")


def refuse_other_files(folder: Path) -> None:
    """InputError if there is a folder that holds other files than an adapter's, or something that is no folder."""
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise InputError(f"{folder} is no folder of an adapter, and is not replaced; move it, or name another folder")
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in WRITTEN)
    if others:
        raise InputError(
            f"{folder} holds other files than an adapter's, such as {others[0]}, and is not replaced; move them, or "
            f"name another folder"
        )


def peft_config(paths: Mapping[str, LowRank], drop_rate: float, names: str = OURS) -> dict[str, Any]:
    """The fields of peft's LoraConfig for these paths, by whose names the projections have."""
    ranks = {module: len(path.A) for module, path in paths.items()}
    alphas = {module: _alpha(path) for module, path in paths.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if names == HUGGING_FACE else None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: other for module, other in ranks.items() if other != rank},
        "alpha_pattern": {module: other for module, other in alphas.items() if other != alpha},
        "lora_dropout": drop_rate,
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": names == HUGGING_FACE,
        "target_modules": list(paths),
    }


def _alpha(path: LowRank) -> float | int:
    """α = s R, as an integer where it is one except for rounding."""
    alpha = path.scale * len(path.A)
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha


# Names


def _by_module(file: TensorFile) -> dict[str, tuple[str, str]]:
    """The names of the two matrices of each projection. InputError for other tensors, and for one without the other."""
    found: dict[str, dict[str, str]] = {}
    for name in file.layouts:
        match = _MATRIX.fullmatch(name)
        if match is None:
            expected = f"{PREFIX}PROJECTION.lora_A.weight"
            raise InputError(f"the adapter {file.path} has the tensor {name}; expected {expected}")
        found.setdefault(match["module"], {})[match["matrix"]] = name
    if not found:
        raise InputError(f"the adapter {file.path} has no tensors")
    alone = [module for module, matrices in found.items() if len(matrices) == 1]
    if alone:
        raise InputError(f"the adapter {file.path} has one of two matrices of {', '.join(alone)}; expected A and B")
    return {module: (matrices["A"], matrices["B"]) for module, matrices in found.items()}


def _theirs() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Hugging Face's projections and ours, with {i} for the block's number."""
    for row in hugging_face.TABLE.rows:
        if row.transposed or row.theirs == hugging_face.HEAD:
            yield row.theirs.removesuffix(".weight"), tuple(name.removesuffix(".weight") for name in row.ours)


def _as_ours(module: str, path: LowRank) -> dict[str, LowRank]:
    """The path by our names of its projections: three for Hugging Face's queries, keys and values in one."""
    block = _BLOCK.search(module)
    number = block[1] if block else ""
    for theirs, ours in _theirs():
        if module in (theirs.replace("{i}", number), theirs.replace("{i}", number).removeprefix("transformer.")):
            thirds = np.split(path.B, len(ours)) if len(path.B) % len(ours) == 0 else [path.B]
            names = [name.replace("{i}", number) for name in ours][: len(thirds)]
            return {
                name: path._replace(A=path.A.copy(), B=third.copy()) for name, third in zip(names, thirds, strict=True)
            }
    return {module: path}


def _as_theirs(paths: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The paths by Hugging Face's names, those of queries, keys and values in one."""
    found: dict[str, LowRank] = {}
    left = dict(paths)
    numbers = sorted({match[1] for name in paths if (match := _BLOCK.search(name))}, key=int)
    for theirs, ours in _theirs():
        for number in numbers if "{i}" in theirs else [""]:
            names = [name.replace("{i}", number) for name in ours]
            own = [left.pop(name, None) for name in names]
            if any(own):
                found[theirs.replace("{i}", number)] = own[0] if len(own) == 1 else _in_one(own)  # type: ignore[assignment]
    if left:
        raise InputError(f"Hugging Face's GPT-2 has no projections {', '.join(left)}")
    return found


def _in_one(paths: Sequence[LowRank | None]) -> LowRank:
    """The path beside several projections in one, of which some may have none.

        B @ A = [s₁ B₁ @ A₁; s₂ B₂ @ A₂; ...]          their outputs below each other

    All outputs are of one size. The factors of the scales go into B.
    """
    there = [path for path in paths if path is not None]
    outputs = len(there[0].B)
    scale = there[0].scale or 1.0
    shared = all(np.array_equal(path.A, there[0].A) for path in there)
    A = there[0].A if shared else np.concatenate([path.A for path in there])
    B = np.zeros((outputs * len(paths), len(A)), A.dtype)
    column = 0
    for position, path in enumerate(paths):
        if path is None:
            continue
        rank = len(path.A)
        rows = slice(position * outputs, (position + 1) * outputs)
        B[rows, column : column + rank] = path.scale / scale * path.B
        column += 0 if shared else rank
    return LowRank(A, B, scale)


# Values


def _scale(config: Mapping[str, Any], module: str, rank: int, folder: Path) -> float:
    """What peft multiplies the path by: α/R, or α/√R with `use_rslora`; α may be the projection's own."""
    alpha = _number(config, "lora_alpha", folder)
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise InputError(f"alpha_pattern of the adapter {folder} is {patterns!r:.80}; expected an object")
    for pattern in patterns:
        _refuse_pattern(pattern, folder)
        if re.match(rf"(.*\.)?({pattern})$", module):  # as peft matches it
            alpha = _number(patterns, pattern, folder)
            break
    rank_stabilized = config.get("use_rslora", False)
    if rank_stabilized not in (True, False, None):
        raise InputError(f"use_rslora of the adapter {folder} is {rank_stabilized!r:.80}; expected true or false")
    return alpha / (math.sqrt(rank) if rank_stabilized else rank)


def _refuse_pattern(pattern: str, folder: Path) -> None:
    """InputError for what is no expression, and for one with groups, whose search may never end."""
    try:
        plain = _PLAIN_PATTERN.fullmatch(pattern) is not None and bool(re.compile(pattern))
    except re.error:
        plain = False
    if not plain:
        raise InputError(f"alpha_pattern of the adapter {folder} has {pattern!r:.80}; expected names of projections")


def _number(values: Mapping[str, Any], name: str, folder: Path, default: float | None = None) -> float:
    value = values.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        raise InputError(f"{name} of the adapter {folder} is {value!r:.80}; expected a number")
    return float(value)


def _read(file: TensorFile, name: str) -> Array:
    if not file.layouts[name].dtype.startswith(("float", "bfloat")):
        raise InputError(f"the adapter {file.path} has {name} as {file.layouts[name].dtype}; expected floats")
    array = file.read(name)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"the adapter {file.path} has values in {name} that are not finite")
    return array


def _refuse_other_kinds(config: Mapping[str, Any], folder: Path) -> None:
    for name, plain in _PLAIN.items():
        found = config.get(name, plain[-1])
        if found not in plain:
            raise InputError(
                f"the adapter {folder} has {name} {found!r:.80}; expected {plain[0]!r}: a LoRA on projections alone"
            )
