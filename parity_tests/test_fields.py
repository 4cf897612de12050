"""In the test run, a named tuple that does not hold what its fields declare cannot be made."""

from importlib import import_module
from pkgutil import iter_modules

import numpy as np
import pytest

from numpygpt import layers, objectives, ops
from numpygpt.layers import multi_head_attention, transformer_block
from numpygpt.layers import parameters as p
from numpygpt.model import body, gpt
from numpygpt.objectives import next_token
from numpygpt.ops import attention, cross_entropy, dropout, embedding, gelu, layer_norm, linear, softmax
from numpygpt.tree import mapped
from parity_tests.annotations import REFUSED

MODULES = [
    import_module(f"{room.__name__}.{module.name}")
    for room in (ops, layers, objectives)
    for module in iter_modules(room.__path__)
] + [body, gpt]
NAMED_TUPLES = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, type) and hasattr(value, "_fields") and value.__module__ == module.__name__
}


@pytest.mark.parametrize("kind", NAMED_TUPLES.values(), ids=list(NAMED_TUPLES))
def test_no_named_tuple_is_made_of_anything(kind):
    with pytest.raises(REFUSED):
        kind(*[object()] * len(kind._fields))


ones = np.ones
BIAS = p.Linear(ones((3, 2)), ones(3))


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda: p.Linear(ones((3, 2)), ones(2)), id="a bias as long as the input"),
        pytest.param(lambda: p.Linear(ones(3)), id="a weight with one axis"),
        pytest.param(lambda: p.Linear(ones((3, 2), int)), id="a weight of integers"),
        pytest.param(lambda: p.LayerNorm(ones(3), ones(2)), id="a shift of another length"),
        pytest.param(lambda: p.StackedAttention(BIAS, BIAS.weight), id="an array for a node"),
        pytest.param(lambda: linear.Saved(ones((2, 3)), ones((4, 5)), True), id="x that does not fit the weight"),
        pytest.param(lambda: embedding.Saved(ones(3), (4, 5)), id="ids that are floats"),
        pytest.param(lambda: softmax.Gradients(ones(3, bool)), id="a gradient of booleans"),
        pytest.param(lambda: gelu.Saved(ones(3), None), id="nothing saved"),
        pytest.param(lambda: dropout.Saved(ones(3), 0.5), id="a mask of floats"),
        pytest.param(lambda: layer_norm.Saved(ones((2, 3)), ones((2, 2)), ones(3), ()), id="two numbers for one"),
        pytest.param(
            lambda: attention.Gradients(ones((2, 3, 4, 5)), ones((2, 3, 6, 4)), None), id="keys of another width"
        ),
        pytest.param(
            lambda: cross_entropy.Saved(ones((2, 3)), ones((2, 1)), ones((2, 1)), ones(3, int), 0),
            id="more targets than rows",
        ),
        pytest.param(lambda: next_token.Gradients(ones((2, 3))), id="logits without a sequence"),
        pytest.param(lambda: transformer_block.DropoutMasks(ones((2, 3, 4, 5), bool)), id="a mask of unequal sides"),
        pytest.param(lambda: multi_head_attention.Gradients(ones((2, 3)), None), id="x without a batch"),
        pytest.param(lambda: body.Gradients(ones((2, 3, 4)), BIAS), id="a gradient in another tree"),
    ],
)
def test_a_field_of_another_shape_or_dtype_is_refused(made):
    with pytest.raises(REFUSED):
        made()


def test_what_fits_is_made_and_trees_may_hold_other_things_by_make():
    assert np.array_equal(BIAS.bias, ones(3))
    assert attention.Gradients(None, ones((2, 3, 6, 5)), None).queries is None
    assert mapped(lambda array: array.shape, BIAS) == ((3, 2), (3,))
    assert BIAS._replace(weight=None).weight is None
