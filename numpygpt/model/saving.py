"""What a model saves of itself: the section "model" of a checkpoint, written and read.

    values   config      the configuration: `GPTConfig.to_dict()`
             tokenizer   the name for `get_tokenizer`, or None
    arrays   the weights under their PyTorch names; tied weights once
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.initialization import allocate
from numpygpt.model.sizes import check_memory, num_parameters
from numpygpt.parallel import ahead
from numpygpt.sections import Layout, SavedSections, Section, named_in_errors, value_of
from numpygpt.shapes import Array
from numpygpt.tree import named

SECTION = "model"
#: A value of the section if the model was made of another, which is saved elsewhere (`numpygpt.adapt.saving`).
BASE = "base"
#: A value of the section if matrices of the model are quantized (`numpygpt.adapt.packed`).
QUANTIZED = "quantized"
#: The rows and columns of a tile, in which a transposed matrix is copied: with float32, 64 KiB of each of the two.
TILE = 128


def model_section(model: GPTModel, tokenizer: str | None = None) -> Section:
    """The model and the name of its tokenizer; the arrays are the model's own."""
    return Section({"config": model.config.to_dict(), "tokenizer": tokenizer}, model.named_parameters())


def saved_config(saved: SavedSections) -> GPTConfig:
    """The configuration of the saved model. InputError if there is none, or none of a model."""
    values = saved.values(SECTION)
    with named_in_errors(saved):
        return GPTConfig.of(value_of(values, "config", dict))


def saved_tokenizer(saved: SavedSections) -> str | None:
    """The name of the saved model's tokenizer, if it was saved. InputError if there is no model."""
    values = saved.values(SECTION)
    with named_in_errors(saved):
        name: str | None = value_of(values, "tokenizer", str, type(None))
    return name


def model_of(saved: SavedSections, dtype: Any = None, **options: Any) -> GPTModel:
    """The saved model, in its own dtype or in `dtype`; the options are `GPTModel`'s.

    Raises InputError if there is no model, for names, shapes or dtypes that do not fit its configuration, all listed,
    and for a model that is larger than the machine's memory. All this is found before any memory is taken for the
    model, so a configuration of absurd sizes costs nothing.
    """
    config, dtype = checked(saved, dtype)
    model = GPTModel.unfilled(config, dtype, **options)
    copy_into(saved, model.named_parameters())
    return model


def copy_into(
    saved: SavedSections, parameters: Mapping[str, Array], dtypes: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Copy the saved weights into the parameters of their names.

    dtypes   the dtypes that arrays of these names have to have; the others may have any floating-point dtype

    Raises InputError, and copies nothing, for names, shapes or dtypes that do not fit them, all listed.
    """
    shapes = {name: array.shape for name, array in parameters.items()}
    refuse_other_layouts(shapes, saved.layouts(SECTION), dtypes)
    for name, weights in ahead(saved.each_array(SECTION)):
        _copy(weights, parameters[name])


def _copy(source: Array, target: Array) -> None:
    """Copy the values.

    A transposed matrix goes in tiles that stay in the cache: those of GPT-2 124M in 0.33 s, where a copy of each matrix
    at once takes 0.57 s.
    """
    if source.ndim < 2 or source.strides[0] >= source.strides[1]:
        np.copyto(target, source, casting="same_kind")
        return
    for top in range(0, len(source), TILE):
        for left in range(0, source.shape[1], TILE):
            tile = np.s_[top : top + TILE, left : left + TILE]
            np.copyto(target[tile], source[tile], casting="same_kind")


def checked(saved: SavedSections, dtype: Any = None) -> tuple[GPTConfig, Any]:
    """The configuration of the saved model, and the dtype to load it in: `dtype`, or that of its weights.

    Raises InputError as `model_of`; no weights are read.
    """
    config = saved_config(saved)
    with named_in_errors(saved):
        if BASE in saved.values(SECTION):
            raise InputError("it has the adapter of a model and not the model; make one of both: numpygpt merge")
        if QUANTIZED in saved.values(SECTION):
            raise InputError("its matrices are quantized, and whole ones are needed; name the model it was made of")
        refuse_another_depth(config, saved.layouts(SECTION))
        refuse_other_layouts(parameter_shapes(config), saved.layouts(SECTION))
        if dtype is None:
            dtype = common_dtype(saved.layouts(SECTION))
        check_memory(_bytes_of(config, dtype), "the model")
    return config, dtype


def parameter_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a model's parameters, tied weights once.

    They are those of arrays whose elements have no bytes, so that the model is laid out without memory.
    """
    learned = replace(config, position="learned")  # a table of sinusoids would be computed
    try:
        shapes = {name: array.shape for name, array in named(allocate(learned, np.dtype("V0")))}
    except ValueError as error:
        raise InputError(f"no model can have these sizes: {error}") from error
    if config.position == "sinusoidal":
        del shapes["pos_emb.weight"]
    if config.tie_weights:
        del shapes["out_head.weight"]
    return shapes


def refuse_another_depth(config: GPTConfig, found: Mapping[str, Layout]) -> None:
    """InputError for more blocks than there are arrays, found out before the blocks are laid out."""
    if config.n_layers > len(found):
        raise InputError(f"n_layers is {config.n_layers}, but there are {len(found)} arrays in all")


def refuse_other_layouts(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, Layout],
    dtypes: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """InputError unless arrays of these names and shapes were saved, and no others; `dtypes` as in `copy_into`."""
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "misshaped": [
            f"{name} {found[name].shape}, expected {shape}"
            for name, shape in expected.items()
            if name in found and found[name].shape != shape
        ],
        "not floating-point": [
            name for name, layout in found.items() if name not in dtypes and not layout.dtype.startswith("float")
        ],
        "of another dtype": [
            f"{name} {found[name].dtype}, expected {dtype}"
            for name, dtype in dtypes.items()
            if name in found and found[name].dtype != dtype
        ],
    }
    listed = "; ".join(f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names)
    if listed:
        raise InputError(f"the weights do not fit the configuration: {listed}")


def common_dtype(found: Mapping[str, Layout]) -> str:
    """The dtype that all of these have. InputError if they have several."""
    dtypes = sorted({layout.dtype for layout in found.values()})
    if len(dtypes) > 1:
        raise InputError(f"the weights are of several dtypes, {', '.join(dtypes)}; say in which to load them")
    return dtypes[0]


def _bytes_of(config: GPTConfig, dtype: Any) -> int:
    """Of the weights, and of the table of positions, which is no weight if it is sinusoidal."""
    table = config.context_length * config.emb_dim if config.position == "sinusoidal" else 0
    return np.dtype(dtype).itemsize * (num_parameters(config) + table)
