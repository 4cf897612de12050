"""llm.c's binary files (github.com/karpathy/llm.c), as its train_gpt2.py writes them: a model, and the state of a step.

Both begin with 256 numbers of int32, little-endian, and hold float32 after that. A vocabulary is filled up to a
multiple of 128 by rows of zeros.

    model   20240326, version 3, context_length, vocab_size, n_layers, n_heads, emb_dim, padded vocab_size; parameters
    state   20240327, version 2, B, T; inputs (B, T) and targets (B, T) of int32, logits (B, T, V), loss, and the
            gradients of the parameters

The parameters are those of nanoGPT, each layer's below each other, in the order of PARAMETERS. llm.c computes GPT-2 as
it was released and nothing else (COMPUTED).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.files import replacing
from numpygpt.formats import nanogpt
from numpygpt.model.config import GPTConfig
from numpygpt.reading import read_file
from numpygpt.shapes import Array

MODEL, MODEL_VERSION = 20240326, 3
STATE, STATE_VERSION = 20240327, 2
HEADER = 256
PADDED_TO = 128

#: {llm.c's name: nanoGPT's}, in the order of its files.
PARAMETERS = {
    "wte": "transformer.wte.weight",
    "wpe": "transformer.wpe.weight",
    "ln1w": f"{nanogpt.BLOCK}.ln_1.weight",
    "ln1b": f"{nanogpt.BLOCK}.ln_1.bias",
    "qkvw": f"{nanogpt.BLOCK}.attn.c_attn.weight",
    "qkvb": f"{nanogpt.BLOCK}.attn.c_attn.bias",
    "attprojw": f"{nanogpt.BLOCK}.attn.c_proj.weight",
    "attprojb": f"{nanogpt.BLOCK}.attn.c_proj.bias",
    "ln2w": f"{nanogpt.BLOCK}.ln_2.weight",
    "ln2b": f"{nanogpt.BLOCK}.ln_2.bias",
    "fcw": f"{nanogpt.BLOCK}.mlp.c_fc.weight",
    "fcb": f"{nanogpt.BLOCK}.mlp.c_fc.bias",
    "fcprojw": f"{nanogpt.BLOCK}.mlp.c_proj.weight",
    "fcprojb": f"{nanogpt.BLOCK}.mlp.c_proj.bias",
    "lnfw": "transformer.ln_f.weight",
    "lnfb": "transformer.ln_f.bias",
}

#: What llm.c computes, whatever the sizes.
COMPUTED: dict[str, Any] = {
    "tie_weights": True,
    "position": "learned",
    "activation": "gelu_tanh",
    "norm_eps": 1e-5,
    "bias": True,
    "qkv_bias": True,
    "drop_rate": 0.0,
}


def refuse_what_llm_c_lacks(config: GPTConfig) -> None:
    """Raise InputError for a model that llm.c would compute otherwise."""
    differing = [
        f"{name} {getattr(config, name)!r}, not {value!r}"
        for name, value in COMPUTED.items()
        if getattr(config, name) != value
    ]
    if differing:
        raise InputError(f"llm.c cannot compute this model, which has {'; '.join(differing)}: change the configuration")


def padded_vocab_size(config: GPTConfig) -> int:
    """V, filled up to a multiple of PADDED_TO."""
    return -(-config.vocab_size // PADDED_TO) * PADDED_TO


def write_model(path: Path, config: GPTConfig, weights: Mapping[str, Array]) -> None:
    """Write the parameters {our name: array}. InputError for a model of another kind, and if it cannot be written."""
    sizes = (config.context_length, config.vocab_size, config.n_layers, config.n_heads, config.emb_dim)
    numbers = (MODEL, MODEL_VERSION, *sizes, padded_vocab_size(config))
    _write(path, numbers, _stacked(config, weights))


def write_state(path: Path, config: GPTConfig, tensors: Mapping[str, Array]) -> None:
    """Write the state of one step. Errors as `write_model`.

    tensors   "inputs", "targets", "logits", "loss", and the gradient `d_NAME` of each parameter
    """
    gradients = {name[2:]: array for name, array in tensors.items() if name.startswith("d_")}
    ids = [tensors[name].astype("<i4") for name in ("inputs", "targets")]
    values = [tensors[name].astype("<f4") for name in ("logits", "loss")]
    numbers = (STATE, STATE_VERSION, *tensors["inputs"].shape)
    _write(path, numbers, [*ids, *values, *_stacked(config, gradients)])


def _stacked(config: GPTConfig, ours: Mapping[str, Array]) -> list[Array]:
    """llm.c's tensors in its order, in float32, of {our name: array} for at least every parameter."""
    refuse_what_llm_c_lacks(config)
    theirs = nanogpt.TABLE.to_theirs(config, ours)
    stacked = [theirs[name].astype("<f4") for name in _names(config)]
    padding = padded_vocab_size(config) - config.vocab_size
    stacked[0] = np.pad(stacked[0], ((0, padding), (0, 0)))
    return stacked


def _write(path: Path, numbers: tuple[int, ...], arrays: list[Array]) -> None:
    header = np.zeros(HEADER, "<i4")
    header[: len(numbers)] = numbers
    try:
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            for array in (header, *arrays):
                file.write(np.ascontiguousarray(array).tobytes())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; name another") from error


def is_state(path: Path) -> bool:
    """Whether the file begins as a state does."""
    with path.open("rb") as file:
        return file.read(4) == np.array(STATE, "<i4").tobytes()


def read_state(path: Path, config: GPTConfig) -> dict[str, Array]:
    """The tensors of a state, by our names, for a model of this configuration.

    Raises InputError for a model of another kind, another version, and a file of another size than the sizes give.
    """
    refuse_what_llm_c_lacks(config)
    contents = read_file(path, "state of llm.c")
    numbers = np.frombuffer(contents[: 4 * HEADER], "<i4")
    if len(numbers) < HEADER or tuple(numbers[:2]) != (STATE, STATE_VERSION):
        raise InputError(
            f"the state {path} of llm.c begins with {numbers[:2].tolist()}; expected {[STATE, STATE_VERSION]}: "
            f"use another"
        )
    B, T = (int(number) for number in numbers[2:4])
    V, shapes = config.vocab_size, _shapes(config)
    words = HEADER + 2 * B * T + B * T * V + 1 + sum(int(np.prod(shape)) for shape in shapes.values())
    if B < 1 or T < 1 or 4 * words != len(contents):
        raise InputError(
            f"the state {path} of llm.c has {len(contents)} bytes; expected {4 * words} for a batch of {B} x {T} and "
            f"the model of the reference: it is truncated, or of another model"
        )
    rest = contents[4 * HEADER :]
    ids = np.frombuffer(rest, "<i4", 2 * B * T).reshape(2, B, T)
    values = np.frombuffer(rest, "<f4", offset=ids.nbytes)
    logits, loss, flat = np.split(values, [B * T * V, B * T * V + 1])
    parts = np.split(flat, np.cumsum([np.prod(shape) for shape in shapes.values()])[:-1])
    theirs = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    theirs["transformer.wte.weight"] = theirs["transformer.wte.weight"][:V]
    gradients = nanogpt.TABLE.to_ours(config, theirs.__getitem__)
    return {
        "inputs": ids[0],
        "targets": ids[1],
        "logits": logits.reshape(B, T, V),
        "loss": loss.reshape(()),
        **{f"d_{name}": gradient for name, gradient in gradients.items()},
    }


def _shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """{nanoGPT's name: shape} in the order of the file, with the padded vocabulary."""
    of_nanogpt = nanogpt.TABLE.shapes(config)
    shapes = {name: of_nanogpt[name] for name in _names(config)}
    return shapes | {"transformer.wte.weight": (padded_vocab_size(config), config.emb_dim)}


def _names(config: GPTConfig) -> Iterator[str]:
    """nanoGPT's names in the order of the file."""
    for name in PARAMETERS.values():
        layers = range(config.n_layers) if "{i}" in name else range(1)
        yield from (name.replace("{i}", str(i)) for i in layers)
