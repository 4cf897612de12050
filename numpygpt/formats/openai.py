"""GPT-2 as OpenAI released it: a TensorFlow checkpoint, hparams.json, and the two files of the tokenizer.

    settings, params = download_and_load_gpt2("124M", "gpt2")
    load_weights_into_gpt(gpt, params)

are the book's functions, for a model of NumPy or of PyTorch. `params` is the book's, too:

    {"wte": (V, D), "wpe": (C, D), "g": (D), "b": (D), "blocks": [
        {"ln_1": {"g", "b"}, "attn": {"c_attn": {"w": (D, 3 D), "b": (3 D)}, "c_proj": {"w", "b"}},
         "ln_2": {"g", "b"}, "mlp": {"c_fc": {"w", "b"}, "c_proj": {"w", "b"}}}, ...]}

where "g" and "b" beside "wte" are the final norm's. The checkpoint has the same as model/h0/attn/c_attn/w and so on. A
weight is (in, out) in both, and in the checkpoint it has an axis of length 1 in front. The head is wte.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.formats import book, openai_download
from numpygpt.formats.foreign import ForeignModel, Tensors
from numpygpt.formats.names import HEAD, QKV_BIASES, QKV_WEIGHTS, TOKENS, Row, Table
from numpygpt.formats.tensorflow_file import TensorFlowFile, newest_checkpoint
from numpygpt.formats.tokenizer_files import NO_TOKENIZER, read_tokenizer
from numpygpt.model.config import GPT_CONFIG_124M, GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.sizes import check_memory, num_parameters
from numpygpt.reading import inside, read_json
from numpygpt.sections import Layout, value_of
from numpygpt.shapes import Array
from numpygpt.tree import named

SETTINGS = "hparams.json"
KIND = "OpenAI"
#: The most bytes of the settings; those of a GPT-2 have 90.
MOST_BYTES = 2**16

BLOCK = "model/h{i}"


def _linear(theirs: str, ours: tuple[str, ...], biases: tuple[str, ...]) -> tuple[Row, Row]:
    return Row(f"{BLOCK}/{theirs}/w", ours, transposed=True, kernel=True), Row(f"{BLOCK}/{theirs}/b", biases)


def _one(theirs: str, ours: str) -> tuple[Row, Row]:
    return _linear(theirs, (f"trf_blocks.{{i}}.{ours}.weight",), (f"trf_blocks.{{i}}.{ours}.bias",))


def _norm(theirs: str, ours: str) -> tuple[Row, Row]:
    return Row(f"{theirs}/g", (f"{ours}.scale",)), Row(f"{theirs}/b", (f"{ours}.shift",))


TABLE = Table(
    rows=(
        Row("model/wte", ("tok_emb.weight",)),
        Row("model/wpe", ("pos_emb.weight",)),
        *_norm(f"{BLOCK}/ln_1", "trf_blocks.{i}.norm1"),
        *_linear("attn/c_attn", QKV_WEIGHTS, QKV_BIASES),
        *_one("attn/c_proj", "att.out_proj"),
        *_norm(f"{BLOCK}/ln_2", "trf_blocks.{i}.norm2"),
        *_one("mlp/c_fc", "ff.layers.0"),
        *_one("mlp/c_proj", "ff.layers.2"),
        *_norm("model/ln_f", "final_norm"),
    )
)


# The book's functions


def download_and_load_gpt2(
    model_size: str, models_dir: str | os.PathLike[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and weights of a released GPT-2, which is fetched if it is not there.

    model_size   "124M", "355M", "774M" or "1558M"
    models_dir   the folder whose folder of that name holds the seven files; one that is complete is read as it is,
                 without the network
    returns      settings, params, as `read_openai_folder`

    Raises InputError as `openai_download.fetch` and `read_openai_folder`.
    """
    return read_openai_folder(openai_download.fetch(model_size, models_dir))


def read_openai_folder(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and weights of a folder of OpenAI's files.

    returns   settings, the values of hparams.json: n_vocab, n_ctx, n_embd, n_head, n_layer; and params, the arrays by
              the names that the book gives them (see the top of the file)

    Raises InputError if TensorFlow is not installed, for files that are missing, damaged, truncated, or links to
    elsewhere, for variables that do not fit the settings (their names and shapes are listed), and for a model that is
    larger than the machine's memory.
    """
    settings, model, variables = _open(Path(folder))
    itemsize = max(np.dtype(layout.dtype).itemsize for layout in variables.layouts.values())
    check_memory(itemsize * num_parameters(model.config), "the model")
    params: dict[str, Any] = {"blocks": [{} for _ in range(model.config.n_layers)]}
    for row in TABLE.expand(model.config):
        group, key = _place(params, row.theirs)
        array = variables.read(row.theirs)
        group[key] = array[0] if row.kernel else array
    return settings, params


def load_weights_into_gpt(gpt: Any, params: Mapping[str, Any]) -> None:
    """Copy the weights into the model, in its own dtype.

    gpt      a GPTModel of numpygpt or torchgpt, or a model made of the book's own classes
    params   as `read_openai_folder` returns them

    The embeddings are copied into a head of its own, too. Raises InputError if anything does not fit: the tensors that
    are missing or unexpected, or of another shape, are listed with both shapes. Then nothing is changed.
    """
    own = {name: tensor for name, tensor in gpt.state_dict().items() if not name.endswith(".att.mask")}
    shapes = {name: Layout("", tuple(tensor.shape)) for name, tensor in own.items()}
    config = book.config_of(shapes, n_heads=1, tied=True)  # only its shapes are used
    if "trf_blocks.0.att.W_query.bias" not in own or "trf_blocks.0.att.out_proj.bias" not in own:
        raise InputError("the model has no biases, and GPT-2's are trained: make it with qkv_bias=True (and bias=True)")
    variables = _variables(params)
    try:
        TABLE.check(config, {name: Layout(array.dtype.name, array.shape) for name, array in variables.items()})
    except InputError as error:
        raise InputError(f"the weights do not fit the model, and nothing was changed: {error}") from error
    weights = TABLE.to_ours(config, variables.__getitem__)
    weights[HEAD] = weights[TOKENS]
    misfits = [
        f"{name} {tuple(tensor.shape)}, its weights {weights[name].shape if name in weights else 'none'}"
        for name, tensor in own.items()
        if name not in weights or weights[name].shape != tuple(tensor.shape)
    ]
    if misfits:
        raise InputError(f"the weights do not fit the model, and nothing was changed: {'; '.join(misfits)}")
    if isinstance(gpt, GPTModel):
        gpt.load_state_dict({name: weights[name] for name in own})
    else:
        for name, tensor in own.items():
            assign(tensor, weights[name], name)


def assign(left: Any, right: Array, name: str = "the parameter") -> Any:
    """Copy `right` into the parameter `left`, in its dtype and on its device, and return `left`.

    left    an array of NumPy, or a tensor or parameter of PyTorch
    name    of the parameter, for the message

    Raises InputError for another shape; then nothing is changed.
    """
    if tuple(left.shape) != tuple(right.shape):
        raise InputError(
            f"{name} has the shape {tuple(left.shape)}, but its weights have {tuple(right.shape)}; "
            f"give it weights of its own shape"
        )
    if isinstance(left, np.ndarray):
        np.copyto(left, right, casting="same_kind")
    else:
        left.detach().copy_(left.new_tensor(right))  # methods of a tensor, so that PyTorch need not be imported
    return left


def _place(params: dict[str, Any], variable: str) -> tuple[dict[str, Any], str]:
    """The dict of `params` that holds a variable, and its key there: c_attn and w for model/h0/attn/c_attn/w."""
    _, *groups, key = variable.split("/")
    place = params
    if groups and groups[0] != "ln_f":
        place = params["blocks"][int(groups[0].removeprefix("h"))]
    for group in groups[1:]:
        place = place.setdefault(group, {})
    return place, key


def _variables(params: Mapping[str, Any]) -> dict[str, Array]:
    """{variable: array} of `params`: the names and shapes of the checkpoint."""
    final_norm = {f"model/ln_f/{key}": params[key] for key in ("g", "b") if key in params}
    others = {f"model/{key}": params[key] for key in params if key not in ("g", "b", "blocks")}
    in_blocks = {
        f"model/h{number}/{path.replace('.', '/')}": array
        for number, block in enumerate(params.get("blocks", ()))
        for path, array in named(block)
    }
    kernels = {name: array[np.newaxis] if name.endswith("/w") else array for name, array in in_blocks.items()}
    return final_norm | others | kernels


# The folder as a model


def read_folder(folder: Path) -> ForeignModel:
    """The model in a folder of OpenAI's files. InputError as `read_openai_folder`."""
    return _open(folder)[1]


def _open(folder: Path) -> tuple[dict[str, Any], ForeignModel, Tensors]:
    """The settings, the model, and the variables."""
    settings = read_json(inside(folder, SETTINGS), "settings of GPT-2", MOST_BYTES)
    try:
        config = config_of(settings)
    except InputError as error:
        raise InputError(f"the settings {folder / SETTINGS} cannot be used: {error}") from error
    variables = TensorFlowFile(folder, newest_checkpoint(folder))
    tokenizer, notes = read_tokenizer(folder), []
    if tokenizer == NO_TOKENIZER and config.vocab_size == GPT_CONFIG_124M["vocab_size"]:
        tokenizer = tokenizer._replace(name="gpt2")
        notes.append("there are no files of a tokenizer: GPT-2's is taken, whose size fits")
    model = ForeignModel(
        variables.path,
        KIND,
        config,
        TABLE,
        variables,
        tokenizer=tokenizer.name,
        own_tokenizer=tokenizer.own,
        notes=tuple(notes),
    )
    return settings, model, variables


def config_of(settings: Mapping[str, Any]) -> GPTConfig:
    """The configuration of the values of hparams.json. InputError if anything is missing or impossible.

    They have no word for dropout, which only a training makes use of; 0.1 is the book's rate, and the one in Hugging
    Face's files of the same models.
    """
    return GPTConfig(
        vocab_size=value_of(settings, "n_vocab", int),
        context_length=value_of(settings, "n_ctx", int),
        emb_dim=value_of(settings, "n_embd", int),
        n_heads=value_of(settings, "n_head", int),
        n_layers=value_of(settings, "n_layer", int),
        drop_rate=GPT_CONFIG_124M["drop_rate"],
        qkv_bias=True,
        tie_weights=True,
    )
