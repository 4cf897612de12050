"""The book's .pth: a state dict with our names, which are the book's; alone, or with that of an optimizer.

    torch.save(model.state_dict(), "model.pth")
    torch.save({"model_state_dict": ..., "optimizer_state_dict": ...}, "model_and_optimizer.pth")

Such a file has no configuration. The sizes are those of the tensors, and a parameter that is not there is one that the
model does without. How many heads there are, no tensor tells: the caller says it, or each head has 64 features, as in
every GPT-2. The head is tied to the token embeddings if the two are one tensor in the file.

A file of ours tells all of it: the state dict in it has an attribute with the configuration and the name of the
tokenizer. PyTorch keeps it and makes no use of it, just as the attribute _metadata that it writes itself.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpygpt.errors import InputError
from numpygpt.formats import torch_file
from numpygpt.formats.foreign import ForeignModel
from numpygpt.formats.names import HEAD, POSITIONS, TOKENS, Row, Table
from numpygpt.formats.torch_file import TorchTensors, entries
from numpygpt.model.config import GPT_CONFIG_124M, GPTConfig
from numpygpt.sections import Layout, value_of
from numpygpt.shapes import Array

KIND = "the book"
MODEL, OPTIMIZER = "model_state_dict", "optimizer_state_dict"
#: The features of a head in every GPT-2.
HEAD_DIM = 64
#: The attribute of a state dict in a file of ours.
OURS = "numpygpt"

BLOCK = "trf_blocks.{i}"
LINEAR = ("att.W_query", "att.W_key", "att.W_value", "att.out_proj", "ff.layers.0", "ff.layers.2")
#: Our parameters in the order of the state dict.
NAMES = (
    TOKENS,
    POSITIONS,
    *(f"{BLOCK}.{layer}.{kind}" for layer in LINEAR for kind in ("weight", "bias")),
    *(f"{BLOCK}.{norm}.{kind}" for norm in ("norm1", "norm2") for kind in ("scale", "shift")),
    "final_norm.scale",
    "final_norm.shift",
    HEAD,
)
TABLE = Table(rows=tuple(Row(name, (name,)) for name in NAMES), ignored=(f"{BLOCK}.att.mask",))


# Reading


def model_in(path: Path, contents: Any, n_heads: int | None = None) -> ForeignModel:
    """The model in what `torch_file.load` found in a file.

    n_heads   the number of heads, where the file does not tell it; None: heads of 64 features

    Raises InputError for contents of another kind, and for tensors that are not those of one of our models.
    """
    notes = []
    try:
        state_dict = contents
        if isinstance(contents, dict) and dict.__contains__(contents, MODEL):
            state_dict = entries(contents, "what it holds")[MODEL]
            notes.append(f"of {OPTIMIZER}, nothing is read")
        tensors = TorchTensors(entries(state_dict, "the state dict"))
        ours = vars(state_dict).get(OURS) if isinstance(state_dict, OrderedDict) else None
        if ours is not None:
            ours = entries(ours, f"the attribute {OURS} of the state dict")
            config = GPTConfig.of(value_of(ours, "config", dict))
            tokenizer = value_of(ours, "tokenizer", str, type(None))
        else:
            config = config_of(tensors.layouts, n_heads=n_heads, tied=tensors.are_one(TOKENS, HEAD))
            tokenizer = "gpt2" if config.vocab_size == GPT_CONFIG_124M["vocab_size"] else None
            notes += _notes_on(config, n_heads, tokenizer)
    except InputError as error:
        raise InputError(f"the file {path} cannot be used as one of the book's: {error}") from error
    return torch_file.foreign_model(path, KIND, config, TABLE, tensors, tokenizer=tokenizer, notes=notes)


def config_of(layouts: Mapping[str, Layout], *, n_heads: int | None = None, tied: bool = False) -> GPTConfig:
    """The configuration of a model with parameters of these names and shapes.

    n_heads   the number of heads, which no shape tells; None: heads of 64 features
    tied      whether the head is the token embeddings

    Raises InputError if these are no parameters of one of our models, or if heads of 64 features do not fit them.
    """
    for name in (TOKENS, POSITIONS):
        if name not in layouts or len(layouts[name].shape) != 2:
            found = f"{name} is of shape {layouts[name].shape}" if name in layouts else f"there is no {name}"
            raise InputError(f"{found}; expected a matrix of that name, as every model of the book has it")
    (vocab_size, emb_dim), (context_length, _) = layouts[TOKENS].shape, layouts[POSITIONS].shape
    if n_heads is None:
        if emb_dim % HEAD_DIM:
            raise InputError(
                f"it does not tell the number of heads, and emb_dim {emb_dim} is no multiple of {HEAD_DIM}, the "
                f"features of a head in every GPT-2; give n_heads"
            )
        n_heads = emb_dim // HEAD_DIM
    blocks = {name.split(".")[1] for name in layouts if name.startswith("trf_blocks.")}
    return GPTConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        emb_dim=emb_dim,
        n_heads=n_heads,
        n_layers=len(blocks),
        drop_rate=GPT_CONFIG_124M["drop_rate"],
        qkv_bias="trf_blocks.0.att.W_query.bias" in layouts,
        tie_weights=tied,
        bias="trf_blocks.0.att.out_proj.bias" in layouts,
    )


def _notes_on(config: GPTConfig, n_heads: int | None, tokenizer: str | None) -> list[str]:
    notes = []
    if n_heads is None:
        notes.append(f"the file does not tell the number of heads: {config.n_heads} of {HEAD_DIM} features are taken")
    if tokenizer is not None:
        notes.append("the file names no tokenizer: GPT-2's is taken, whose size fits")
    return notes


# Writing


def write_file(path: Path, config: GPTConfig, weights: Mapping[str, Array], tokenizer: str | None = None) -> None:
    """Write the model as a state dict alone, in place of an older file.

    weights   {our name: array} of the model's parameters, tied ones once

    `GPTModel(cfg).load_state_dict(torch.load(path, weights_only=True))` takes it, in the book and in torchgpt. Raises
    InputError if the file cannot be written.
    """
    ordered = TABLE.to_theirs(config, weights)
    if config.tie_weights:
        ordered[HEAD] = ordered[TOKENS]
    state_dict = torch_file.state_dict_of(ordered)
    vars(state_dict)[OURS] = {"config": config.to_dict(), "tokenizer": tokenizer}
    torch_file.save(path, state_dict)
