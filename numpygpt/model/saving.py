"""What a model saves of itself: the section "model" of a checkpoint, written and read.

    values   config      the configuration: `GPTConfig.to_dict()`
             tokenizer   the name for `get_tokenizer`, or None
    arrays   the weights under their PyTorch names; tied weights once
"""

from typing import Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.initialization import allocate
from numpygpt.sections import SavedSections, Section, named_in_errors, value_of
from numpygpt.tree import named

SECTION = "model"


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

    Raises InputError if there is no model, and for names, shapes or dtypes that do not fit its configuration, all
    listed. They are compared before any memory is taken for the model, so a configuration of absurd sizes costs
    nothing.
    """
    config = saved_config(saved)
    with named_in_errors(saved):
        _refuse_other_layouts(config, saved)
    weights = saved.arrays(SECTION)
    with named_in_errors(saved):
        return GPTModel.from_state_dict(config, weights, dtype, **options)


def _refuse_other_layouts(config: GPTConfig, saved: SavedSections) -> None:
    found = saved.layouts(SECTION)
    if config.n_layers > len(found):
        raise InputError(f"n_layers is {config.n_layers}, but there are {len(found)} arrays in all")
    expected = _shapes(config)
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshaped = [
        f"{name} {found[name].shape}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    wrong_dtype = [f"{name} {layout.dtype}" for name, layout in found.items() if not layout.dtype.startswith("float")]
    if missing or unexpected or misshaped or wrong_dtype:
        raise InputError(
            f"the weights do not fit the configuration: missing {missing}, unexpected {unexpected}, "
            f"misshaped {misshaped}, not floating-point {wrong_dtype}"
        )


def _shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a model's parameters, tied weights once.

    They are those of arrays whose elements have no bytes, so that the model is laid out without memory.
    """
    no_bytes = np.dtype("V0")
    try:
        shapes = {name: array.shape for name, array in named(allocate(config, no_bytes))}
    except ValueError as error:
        raise InputError(f"a model of these sizes cannot be: {error}") from error
    if config.tie_weights:
        del shapes["out_head.weight"]
    return shapes
