"""nanoGPT's ckpt.pt (github.com/karpathy/nanoGPT), read and written.

    {"model": the state dict, "model_args": the configuration,
     "optimizer": ..., "iter_num": ..., "best_val_loss": ..., "config": the options of its train.py}

nanoGPT computes GELU in its exact form, by erf. It has biases everywhere or nowhere, always ties the head to the token
embeddings, adds 1e-5 under the root of its norms, and learns its positions. A model of ours that is otherwise cannot be
written for it, because it would compute something else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpygpt.errors import InputError
from numpygpt.formats import torch_file
from numpygpt.formats.foreign import ForeignModel
from numpygpt.formats.names import HEAD, QKV_BIASES, QKV_WEIGHTS, Row, Table
from numpygpt.formats.torch_file import TorchTensors, entries
from numpygpt.model.config import GPT_CONFIG_124M, GPTConfig
from numpygpt.sections import value_of
from numpygpt.shapes import Array

FILE_NAME = "ckpt.pt"
KIND = "nanoGPT"
MODEL, ARGUMENTS = "model", "model_args"
#: Where nanoGPT's texts keep a vocabulary of characters. It is a pickle, and is never read.
CHARACTERS = "meta.pkl"
#: The vocabularies of what was trained on GPT-2's tokens. nanoGPT fills the size up to a multiple of 64.
OF_GPT2 = (GPT_CONFIG_124M["vocab_size"], 50304)

#: What nanoGPT computes, whatever its configuration says.
FIXED: dict[str, Any] = {"tie_weights": True, "position": "learned", "activation": "gelu_erf", "norm_eps": 1e-5}


def _both(theirs: str, ours: str, second: str = "bias") -> tuple[Row, Row]:
    """The rows of a layer's two parameters: our second one is its bias, or, in a norm, its shift."""
    first = "scale" if second == "shift" else "weight"
    return Row(f"{theirs}.weight", (f"{ours}.{first}",)), Row(f"{theirs}.bias", (f"{ours}.{second}",))


BLOCK = "transformer.h.{i}"
TABLE = Table(
    rows=(
        Row("transformer.wte.weight", ("tok_emb.weight",)),
        Row("transformer.wpe.weight", ("pos_emb.weight",)),
        *_both(f"{BLOCK}.ln_1", "trf_blocks.{i}.norm1", "shift"),
        Row(f"{BLOCK}.attn.c_attn.weight", QKV_WEIGHTS),
        Row(f"{BLOCK}.attn.c_attn.bias", QKV_BIASES),
        *_both(f"{BLOCK}.attn.c_proj", "trf_blocks.{i}.att.out_proj"),
        *_both(f"{BLOCK}.ln_2", "trf_blocks.{i}.norm2", "shift"),
        *_both(f"{BLOCK}.mlp.c_fc", "trf_blocks.{i}.ff.layers.0"),
        *_both(f"{BLOCK}.mlp.c_proj", "trf_blocks.{i}.ff.layers.2"),
        *_both("transformer.ln_f", "final_norm", "shift"),
        Row("lm_head.weight", (HEAD,), always=True),
    ),
    ignored=(f"{BLOCK}.attn.bias",),  # the causal mask, which nanoGPT keeps where PyTorch is older than 2
)


# Reading


def holds_model(contents: Any) -> bool:
    """Whether this is what nanoGPT's train.py puts into a file."""
    return isinstance(contents, dict) and dict.__contains__(contents, MODEL) and dict.__contains__(contents, ARGUMENTS)


def read_folder(folder: Path) -> ForeignModel:
    """The model of a folder that holds ckpt.pt. InputError as `torch_file.load` and `model_in`."""
    return model_in(folder / FILE_NAME, torch_file.load(folder / FILE_NAME))


def model_in(path: Path, contents: Any) -> ForeignModel:
    """The model in what `torch_file.load` found in a file.

    Raises InputError for contents of another kind, for a configuration that cannot be used, and for tensors that do not
    fit it.
    """
    try:
        parts = entries(contents, "what it holds")
        config = config_of(entries(parts.get(ARGUMENTS), ARGUMENTS))
        tensors = TorchTensors(entries(parts.get(MODEL), MODEL))
    except InputError as error:
        raise InputError(f"the file {path} of nanoGPT cannot be used: {error}") from error
    tokenizer, notes = _tokenizer_of(path, config)
    return torch_file.foreign_model(path, KIND, config, TABLE, tensors, tokenizer=tokenizer, notes=notes)


def config_of(arguments: Mapping[str, Any]) -> GPTConfig:
    """The configuration of nanoGPT's model_args. InputError if anything is missing or impossible."""
    values = {"bias": True, "dropout": 0.0, **arguments}
    bias = value_of(values, "bias", bool)
    return GPTConfig(
        vocab_size=value_of(values, "vocab_size", int),
        context_length=value_of(values, "block_size", int),
        emb_dim=value_of(values, "n_embd", int),
        n_heads=value_of(values, "n_head", int),
        n_layers=value_of(values, "n_layer", int),
        drop_rate=value_of(values, "dropout", float),
        qkv_bias=bias,
        bias=bias,
        **FIXED,
    )


def _tokenizer_of(path: Path, config: GPTConfig) -> tuple[str | None, list[str]]:
    """The tokenizer's name, and what is worth telling about it: the file itself names none."""
    if path.with_name(CHARACTERS).exists():
        return None, [f"{CHARACTERS} beside it has the tokenizer, as a pickle, which may run programs: it is not read"]
    if config.vocab_size not in OF_GPT2:
        return None, [f"the file names no tokenizer, and {config.vocab_size} tokens are not GPT-2's"]
    notes = ["the file names no tokenizer: GPT-2's is taken, whose size fits"]
    if config.vocab_size != OF_GPT2[0]:
        notes.append(f"of its {config.vocab_size} tokens, those from {OF_GPT2[0]} on only fill the size up")
    return "gpt2", notes


# Writing


def write_file(path: Path, config: GPTConfig, weights: Mapping[str, Array]) -> None:
    """Write the model as a file that nanoGPT's sample.py takes (with PyTorch 2), in place of an older one.

    weights   {our name: array} of the model's parameters, tied ones once

    There is no state of an optimizer in it, so nanoGPT's train.py cannot resume from it. Raises InputError for a model
    that nanoGPT cannot compute, and if the file cannot be written.
    """
    refuse_what_nanogpt_lacks(config)
    arguments = {
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_embd": config.emb_dim,
        "block_size": config.context_length,
        "bias": config.bias,
        "vocab_size": config.vocab_size,
        "dropout": config.drop_rate,
    }
    contents = {
        MODEL: torch_file.state_dict_of(TABLE.to_theirs(config, weights)),
        "optimizer": None,
        ARGUMENTS: arguments,
        "iter_num": 0,
        "best_val_loss": float("inf"),
        "config": {},
    }
    torch_file.save(path, contents)


def refuse_what_nanogpt_lacks(config: GPTConfig) -> None:
    """Raise InputError for a model that nanoGPT would compute otherwise."""
    found = {name: getattr(config, name) for name in FIXED}
    differing = [f"{name} {value!r}, not {FIXED[name]!r}" for name, value in found.items() if value != FIXED[name]]
    if config.qkv_bias != config.bias:
        differing.append(f"qkv_bias {config.qkv_bias} and bias {config.bias}, not both the same")
    if differing:
        raise InputError(
            f"nanoGPT cannot compute this model, which has {'; '.join(differing)}: write it in another format"
        )
