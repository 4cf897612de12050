"""What a model with quantized matrices saves of itself: the section "model" of a checkpoint, written and read.

    values   config      the configuration: `GPTConfig.to_dict()`
             tokenizer   the name for `get_tokenizer`, or None
             quantized   {projection: scheme, shape, block_size, double} (`numpygpt.numerics.forms.Form`)
    arrays   the parameters under their PyTorch names, without the matrices that are quantized;
             PROJECTION.weight.codes, PROJECTION.weight.absmax, ... of those

Codes are saved as they are in memory. So a packed checkpoint is small, and the model that is read from it computes, bit
for bit, what the one that was saved did.
"""

import math
from typing import Any

import numpy as np

from numpygpt.adapt.adapters import paths_of
from numpygpt.adapt.quantized import quantized_projections
from numpygpt.errors import InputError
from numpygpt.layers import parameters as p
from numpygpt.layers.projections import with_projections
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import (
    QUANTIZED,
    SECTION,
    common_dtype,
    copy_into,
    model_section,
    parameter_shapes,
    refuse_another_depth,
    refuse_other_layouts,
    saved_config,
)
from numpygpt.model.sizes import check_memory
from numpygpt.numerics.codebook import Codebook, Constants
from numpygpt.numerics.forms import OF_CONSTANTS, Form, form_of, unfilled
from numpygpt.numerics.schemes import Quantized
from numpygpt.sections import SavedSections, Section, named_in_errors, value_of
from numpygpt.shapes import Array
from numpygpt.tree import mapped, named


def packed_section(model: GPTModel, tokenizer: str | None) -> Section:
    """The model, whose quantized matrices stay packed; the arrays are the model's own.

    Raises InputError for a model with an adapter, which is saved elsewhere (`numpygpt.adapt.saving`).
    """
    if paths_of(model):
        raise InputError("the model has an adapter, which is no part of a packed model; merge it or remove it first")
    whole = model_section(model, tokenizer)
    forms = {name: form_of(node.weight).to_dict() for name, node in quantized_projections(model).items()}
    return Section({**whole.values, QUANTIZED: forms}, {**whole.arrays, **packed_arrays(model)})


def packed_arrays(model: GPTModel) -> dict[str, Array]:
    """The codes and constants of the model's quantized matrices, by the names that they are saved by."""
    return _named({name: node.weight for name, node in quantized_projections(model).items()})


def forms_of(saved: SavedSections) -> dict[str, Form]:
    """{projection: the form of its matrix} of a saved model; empty if no matrix is quantized. No array is read.

    Raises InputError for forms that do not fit the configuration.
    """
    values, config = saved.values(SECTION), saved_config(saved)
    if QUANTIZED not in values:
        return {}
    with named_in_errors(saved):
        refuse_another_depth(config, saved.layouts(SECTION))
        return _forms(value_of(values, QUANTIZED, dict), parameter_shapes(config))


def packed_model_of(saved: SavedSections, dtype: Any = None, **options: Any) -> GPTModel:
    """The saved model with quantized matrices; arguments as those of `numpygpt.model.saving.model_of`.

    dtype   of the other parameters, in which the model computes

    Raises InputError as that function, and for a quantized matrix of a scheme that does not exist, or with codes and
    constants that do not fit its form.
    """
    config, forms = saved_config(saved), forms_of(saved)
    weights = {projection: unfilled(form) for projection, form in forms.items()}
    with named_in_errors(saved):
        dtypes = {name: array.dtype.name for name, array in _named(weights).items()}
        layouts = saved.layouts(SECTION)
        refuse_other_layouts(_shapes(config, weights), layouts, dtypes)
        if dtype is None:
            dtype = common_dtype({name: layout for name, layout in layouts.items() if name not in dtypes})
        needed = sum(math.prod(layout.shape) * np.dtype(layout.dtype).itemsize for layout in layouts.values())
        check_memory(needed, "the model")
    weights = {projection: mapped(_with_memory, weight) for projection, weight in weights.items()}
    model = _with_weights(GPTModel.unfilled(config, dtype, **options), weights)
    copy_into(saved, {**model.named_parameters(), **_named(weights)}, dtypes)
    with named_in_errors(saved):
        _refuse_other_levels(weights, forms)
    return model


def _forms(saved: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Form]:
    forms = {}
    for projection in saved:
        try:
            form = Form.of_dict(value_of(saved, projection, dict))
        except InputError as error:
            raise InputError(f"the quantized matrix of {projection:.60}: {error}") from error
        expected = shapes.get(f"{projection}.weight")
        if form.shape != expected:
            raise InputError(
                f"the quantized matrix of {projection:.60} has the shape {form.shape}; by the configuration, expected "
                f"{expected or 'no such matrix'}"
            )
        forms[projection] = form
    return forms


def _shapes(config: GPTConfig, weights: dict[str, Quantized]) -> dict[str, tuple[int, ...]]:
    """The shapes of all arrays of a packed model."""
    whole = {f"{projection}.weight" for projection in weights}
    shapes = {name: shape for name, shape in parameter_shapes(config).items() if name not in whole}
    return {**shapes, **{name: array.shape for name, array in _named(weights).items()}}


def _named(weights: dict[str, Quantized]) -> dict[str, Array]:
    return {
        name: array for projection, weight in weights.items() for name, array in named(weight, f"{projection}.weight")
    }


def _with_memory(array: Array) -> Array:
    return np.empty(array.shape, array.dtype)


def _with_weights(model: GPTModel, weights: dict[str, Quantized]) -> GPTModel:
    def packed(projection: str, node: Any) -> Any:
        return p.QuantizedLinear(weights[projection], node.bias) if projection in weights else node

    return model.with_parameters(with_projections(packed, model.parameters))


def _refuse_other_levels(weights: dict[str, Quantized], forms: dict[str, Form]) -> None:
    """InputError for codes of a scheme with the levels of another."""
    for projection, weight in weights.items():
        parts: list[tuple[Quantized, str]] = [(weight, forms[projection].scheme)]
        if isinstance(weight, Codebook) and isinstance(weight.absmax, Constants):
            parts.append((weight.absmax.rest, OF_CONSTANTS))
        for quantized, expected in parts:
            found = form_of(quantized).scheme
            if found != expected:
                raise InputError(f"the codes of {projection} are of {expected}, and their levels of {found}")
