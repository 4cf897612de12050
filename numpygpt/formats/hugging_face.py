"""Hugging Face's folders of a GPT-2, read and written.

    config.json                    the configuration, of the model type gpt2
    model.safetensors              the weights; or, in several files,
    model.safetensors.index.json   which file has which tensor
    tokenizer.json, ...            the tokenizer (`numpygpt.formats.tokenizer_files`)

Their linear layers keep a weight as (in, out), and queries, keys and values in one. Every layer has a bias, and
positions are always learned. A model of ours without a bias, or with sinusoidal positions, is written with zeros, or
with the sinusoids, in their place. Then config.json says so under "numpygpt", where `transformers` keeps it and makes
no use of it, and the model is read again as it was. Should somebody have trained the zeros meanwhile, it is read with
them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from numpygpt.data.tokenizer import ENDOFTEXT
from numpygpt.errors import InputError
from numpygpt.files import replacing_folder
from numpygpt.formats import tokenizer_files, torch_file
from numpygpt.formats.foreign import ForeignModel, Tensors
from numpygpt.formats.names import HEAD as OUR_HEAD
from numpygpt.formats.names import QKV_BIASES, QKV_WEIGHTS, Row, Table, with_parameters
from numpygpt.formats.tensor_file import TensorFile, write_tensors
from numpygpt.formats.torch_file import TorchTensors, entries
from numpygpt.model.config import GPT_CONFIG_124M, GPTConfig
from numpygpt.reading import inside, read_json
from numpygpt.sections import value_of
from numpygpt.shapes import Array

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
#: What `write_folder` writes.
WRITTEN = {CONFIG, WEIGHTS, GENERATION, *tokenizer_files.WRITTEN}
#: The weights in PyTorch's own kind of file, as `transformers` wrote them before there was WEIGHTS.
PICKLED = "pytorch_model.bin"
#: The most bytes of a configuration or an index; the largest GPT-2's index has 0.1 million.
MOST_BYTES = 2**22

#: In front of every tensor's name but the head's, or, in files of the body alone, of none.
PREFIX = "transformer."
HEAD = "lm_head.weight"

KIND = "Hugging Face"
#: The dtypes that become float32.
SHORT = ("bfloat16", "float16")


def _linear(theirs: str, ours: str) -> tuple[Row, Row]:
    return (
        Row(f"transformer.h.{{i}}.{theirs}.weight", (f"trf_blocks.{{i}}.{ours}.weight",), transposed=True),
        Row(f"transformer.h.{{i}}.{theirs}.bias", (f"trf_blocks.{{i}}.{ours}.bias",), always=True),
    )


def _norm(theirs: str, ours: str) -> tuple[Row, Row]:
    return (
        Row(f"transformer.{theirs}.weight", (f"{ours}.scale",)),
        Row(f"transformer.{theirs}.bias", (f"{ours}.shift",), always=True),
    )


TABLE = Table(
    rows=(
        Row("transformer.wte.weight", ("tok_emb.weight",)),
        Row("transformer.wpe.weight", ("pos_emb.weight",), always=True),
        *_norm("h.{i}.ln_1", "trf_blocks.{i}.norm1"),
        Row("transformer.h.{i}.attn.c_attn.weight", QKV_WEIGHTS, transposed=True),
        Row("transformer.h.{i}.attn.c_attn.bias", QKV_BIASES, always=True),
        *_linear("attn.c_proj", "att.out_proj"),
        *_norm("h.{i}.ln_2", "trf_blocks.{i}.norm2"),
        *_linear("mlp.c_fc", "ff.layers.0"),
        *_linear("mlp.c_proj", "ff.layers.2"),
        *_norm("ln_f", "final_norm"),
        Row(HEAD, ("out_head.weight",)),
    ),
    ignored=("transformer.h.{i}.attn.bias", "transformer.h.{i}.attn.masked_bias"),
)

#: Their names of the two forms of GELU; the first of each is the one that is written.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu": "gelu_erf",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python": "gelu_erf",
}
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
#: What `transformers` takes where config.json says nothing.
DEFAULTS: dict[str, Any] = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    **dict.fromkeys(DROPOUTS, 0.1),
}
#: What this model cannot compute otherwise, and `transformers` can.
FIXED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}

#: Our entry of config.json: the fields of GPTConfig that theirs has no word for, where they are not as GPT-2's.
OURS = "numpygpt"
WITHOUT_A_WORD = {"qkv_bias": True, "bias": True, "position": "learned"}


# Reading


def read_folder(folder: Path) -> ForeignModel:
    """The model of a folder that holds config.json and the weights.

    Raises InputError for files that are missing, damaged, too large for what they are, or links to elsewhere; for a
    model that is no GPT-2, or that cannot be computed here; and for tensors that do not fit the configuration.
    """
    values = read_json(inside(folder, CONFIG), "configuration", MOST_BYTES)
    try:
        config, notes = config_of(values), _notes_on(values)
    except InputError as error:
        raise InputError(f"the configuration {folder / CONFIG} cannot be used: {error}") from error
    path, tensors = _open_weights(folder)
    if tensors.short:
        notes.append(f"weights of {' and '.join(tensors.short)} are read as float32")
    ForeignModel(path, KIND, config, TABLE, tensors)  # refuses tensors of other names and shapes, before any is read
    trained = TABLE.surplus(config, tensors.layouts, tensors.read)
    if OUR_HEAD in trained:
        raise InputError(
            f"the checkpoint {path} cannot be used: {HEAD} differs from wte.weight, but {CONFIG} ties the two; "
            f"set tie_word_embeddings to false there"
        )
    if trained:
        config = with_parameters(config, trained)
        notes.append(f"{CONFIG} says that the model has no {trained[0]} and the like, but they have been trained: kept")
    tokenizer = tokenizer_files.read_tokenizer(folder)
    if tokenizer == tokenizer_files.NO_TOKENIZER and config.vocab_size == GPT_CONFIG_124M["vocab_size"]:
        tokenizer = tokenizer._replace(name="gpt2")
        notes.append("there are no files of a tokenizer: GPT-2's is taken, whose size fits")
    return ForeignModel(
        path, KIND, config, TABLE, tensors, tokenizer=tokenizer.name, own_tokenizer=tokenizer.own, notes=tuple(notes)
    )


def config_of(values: Mapping[str, Any]) -> GPTConfig:
    """The configuration in the values of a config.json. InputError if it is no GPT-2 that can be computed here."""
    kind = value_of(values, "model_type", str)
    if kind != "gpt2":
        raise InputError(f"model_type is {kind!r:.80}; expected 'gpt2', the one architecture that is computed here")
    values = {**DEFAULTS, **FIXED, "n_positions": values.get("n_ctx"), "n_inner": None, OURS: {}, **values}
    for name, expected in FIXED.items():
        if values[name] != expected:
            raise InputError(f"{name} is {values[name]!r:.80}; expected {expected}, the only way to compute here")
    emb_dim = value_of(values, "n_embd", int)
    if values["n_inner"] not in (None, 4 * emb_dim):
        raise InputError(f"n_inner is {values['n_inner']!r:.80}; expected 4 n_embd, {4 * emb_dim}, or null")
    activation = value_of(values, "activation_function", str)
    if activation not in ACTIVATIONS:
        raise InputError(f"activation_function is {activation!r:.80}; expected one of: {', '.join(ACTIVATIONS)}")
    ours = value_of(values, OURS, dict)
    return GPTConfig(
        vocab_size=value_of(values, "vocab_size", int),
        context_length=value_of(values, "n_positions", int),
        emb_dim=emb_dim,
        n_heads=value_of(values, "n_head", int),
        n_layers=value_of(values, "n_layer", int),
        drop_rate=value_of(values, DROPOUTS[0], float),
        tie_weights=value_of(values, "tie_word_embeddings", bool),
        activation=ACTIVATIONS[activation],
        norm_eps=value_of(values, "layer_norm_epsilon", float),
        **{name: ours.get(name, usual) for name, usual in WITHOUT_A_WORD.items()},
    )


def _notes_on(values: Mapping[str, Any]) -> list[str]:
    """What config.json says that a GPTConfig does not."""
    notes = []
    rates = {name: values.get(name, DEFAULTS[name]) for name in DROPOUTS}
    if len(set(map(repr, rates.values()))) > 1:
        listed = ", ".join(f"{name} {rate!r:.80}" for name, rate in rates.items())
        notes.append(f"{listed}: the first is taken for all three; only a training makes use of it")
    if values.get("reorder_and_upcast_attn"):
        notes.append("reorder_and_upcast_attn changes the rounding alone, and is left out")
    return notes


class _Weights:
    """The tensors of one file or several, under the names of TABLE; those of 16 bits become float32."""

    def __init__(self, places: Mapping[str, Tensors], short: Sequence[str] = ()) -> None:
        """The files of the tensors, by the tensors' names; and the short dtypes that the files hide."""
        self._places = {_with_prefix(name): (file, name) for name, file in places.items()}
        if len(self._places) < len(places):
            raise InputError(f"tensors have the same name with and without the prefix {PREFIX}; use another checkpoint")
        found = {name: file.layouts[own_name] for name, (file, own_name) in self._places.items()}
        self.short = sorted({*short, *(layout.dtype for layout in found.values())} & set(SHORT))
        self.layouts = {
            name: layout._replace(dtype="float32") if layout.dtype in SHORT else layout
            for name, layout in found.items()
        }

    def read(self, name: str) -> Array:
        """The tensor of that name, as a new array. InputError if it cannot be read."""
        file, own_name = self._places[name]
        return file.read(own_name).astype(self.layouts[name].dtype, copy=False)


def _with_prefix(name: str) -> str:
    return name if name == HEAD or name.startswith(PREFIX) else PREFIX + name


def _open_weights(folder: Path) -> tuple[Path, _Weights]:
    """The first file of the weights, and the tensors of all. InputError if there are none."""
    if (folder / WEIGHTS).exists():
        file = TensorFile(inside(folder, WEIGHTS), bfloat16=True)
        return file.path, _Weights(dict.fromkeys(file.layouts, file))
    if (folder / INDEX).exists():
        return folder / INDEX, _Weights(_open_shards(folder))
    if (folder / PICKLED).exists():
        path = inside(folder, PICKLED)
        tensors = TorchTensors(entries(torch_file.load(path), f"the state dict in {path}"))
        return path, _Weights(dict.fromkeys(tensors.layouts, tensors), tensors.short)
    raise InputError(
        f"{folder} holds a {CONFIG}, but no weights; expected {WEIGHTS}, or {INDEX} and the files that it names"
    )


def _open_shards(folder: Path) -> dict[str, TensorFile]:
    """The file of each tensor. InputError for files that are missing, or hold other tensors than the index says."""
    index = read_json(inside(folder, INDEX), "index of the weights", MOST_BYTES)
    try:
        listed = value_of(index, "weight_map", dict)
        listed = {name: value_of(listed, name, str) for name in listed}
    except InputError as error:
        raise InputError(f"the index of the weights {folder / INDEX} cannot be used: {error}") from error
    paths = {name: inside(folder, name) for name in dict.fromkeys(listed.values())}
    missing = [name for name, path in paths.items() if not path.exists()]
    if missing:
        first = ", ".join(missing[:3])
        raise InputError(f"{folder} lacks {len(missing)} of the files that {INDEX} names: {first}; get them, too")
    shards = {name: TensorFile(path, bfloat16=True) for name, path in paths.items()}
    found = [(tensor, name) for name, shard in shards.items() for tensor in shard.layouts]
    differing = set(found) ^ set(listed.items())
    if differing:
        tensor, name = min(differing)
        raise InputError(f"{folder / INDEX} and the files that it names differ on whether {tensor} is in {name}")
    return {tensor: shards[name] for tensor, name in found}


# Writing


def write_folder(
    folder: Path, config: GPTConfig, weights: Mapping[str, Array], tokenizer: str | None, *, overwrite: bool = False
) -> None:
    """Write the model as a folder that `transformers` takes as it is. It takes its place in one step.

    weights     {our name: array} of the model's parameters, all float32 or all float64
    tokenizer   "gpt2", "bytes", or None: the folder has no files of a tokenizer
    overwrite   whether the folder may replace one that this function wrote before

    Raises InputError for a folder that may not be replaced, or cannot be written.
    """
    refuse_other_files(folder, overwrite=overwrite)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in TABLE.to_theirs(config, weights).items()}
    vocabulary = None if tokenizer is None else tokenizer_files.named(tokenizer)
    end = None if vocabulary is None else vocabulary.special.get(ENDOFTEXT)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(folder) as unfinished:
            dtype = str(weights["tok_emb.weight"].dtype)
            tokenizer_files.write_json(unfinished / CONFIG, _config_json(config, dtype, end))
            generation = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end)
            tokenizer_files.write_json(unfinished / GENERATION, generation)
            write_tensors(unfinished / WEIGHTS, tensors, {"format": "pt"})
            if vocabulary is not None:
                tokenizer_files.write_tokenizer(unfinished, vocabulary, config.context_length)
    except OSError as error:
        raise InputError(f"cannot write the folder {folder}: {error.strerror or error}; name another") from error


def refuse_other_files(folder: Path, *, overwrite: bool) -> None:
    """InputError unless a folder can be written there: there is none, or an empty one, or one that may be replaced."""
    try:
        found = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot write the folder {folder}: {error.strerror}; name another") from error
    others = [name for name in found if name not in WRITTEN]
    if others and overwrite:
        raise InputError(f"{folder} holds other files, such as {others[0]}, and is not replaced; name another folder")
    if found and not overwrite:
        raise InputError(f"{folder} already holds files; replace them with --overwrite, or name another folder")


def _config_json(config: GPTConfig, dtype: str, end: int | None) -> dict[str, Any]:
    """The values of config.json. `end` is the id of the token that ends a text."""
    ours = {name: getattr(config, name) for name, usual in WITHOUT_A_WORD.items() if getattr(config, name) != usual}
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "dtype": dtype,
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.emb_dim,
        "n_head": config.n_heads,
        "n_layer": config.n_layers,
        "n_inner": None,
        "activation_function": activation,
        **dict.fromkeys(DROPOUTS, config.drop_rate),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_weights,
        "bos_token_id": end,
        "eos_token_id": end,
        **FIXED,
        **({OURS: ours} if ours else {}),
    }
