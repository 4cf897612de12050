"""The model of rounding errors: as large as theory says, no larger, and in every operation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from numpygpt.checks.compare import compare, scaled
from parity_tests.strategies import steps
from parity_tests.tolerances import FACTOR
from torchgpt.bridge import to_torch
from torchgpt.checks.parity import step_reference, torch_step
from torchgpt.checks.rounding import RoundingErrors

UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}
REPEATS = 400


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def errors_of(function, *arrays, dtype=np.float32, factor=1.0):
    """The errors of REPEATS runs with rounding errors."""
    tensors = [torch.from_numpy(array).expand(REPEATS, *array.shape).clone() for array in arrays]
    exact = function(*tensors)
    with RoundingErrors(dtype, seed=0, factor=factor):
        return (function(*tensors) - exact).numpy()


def deviation(errors):
    return np.sqrt(np.mean(errors**2, axis=0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_product_errs_by_the_root_of_n_times_the_product_of_magnitudes(dtype, factor):
    a, b = normal(3, 9), normal(9, 5)
    expected = factor * 3 * UNIT[dtype] * (np.abs(a) @ np.abs(b))
    share = deviation(errors_of(torch.bmm, a, b, dtype=dtype, factor=factor)) / expected
    assert np.all((share > 0.8) & (share < 1.25))


@pytest.mark.parametrize(("dtype", "unit"), [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
def test_a_short_format_rounds_the_result_of_a_product_once(dtype, unit):
    """This holds for any number of terms, because they are added up in float32."""
    a, b = normal(3, 99), normal(99, 5)
    share = deviation(errors_of(torch.bmm, a, b, dtype=dtype)) / (unit * np.abs(a @ b))
    assert np.all((share > 0.8) & (share < 1.25))


@pytest.mark.parametrize(
    ("function", "scale"),
    [
        (torch.exp, lambda x: np.exp(x)),
        (lambda x: x.sum(dim=-1), lambda x: np.sqrt(x.shape[-1]) * np.abs(x).sum(axis=-1)),
        (lambda x: x.mean(dim=-1), lambda x: np.sqrt(x.shape[-1]) * np.abs(x).mean(axis=-1)),
    ],
)
def test_elementwise_operations_err_by_their_result_and_sums_by_their_terms(function, scale):
    x = normal(4, 6)
    share = deviation(errors_of(function, x)) / (UNIT[np.float32] * scale(x))
    assert np.all((share > 0.8) & (share < 1.25))


def test_moving_numbers_makes_no_errors():
    assert not errors_of(lambda x: -x.transpose(1, 2).reshape(REPEATS, 3, 8).clone(), normal(4, 6)).any()
    ids = torch.tensor([[1, 0, 1]])
    assert not errors_of(lambda weight: nn.functional.embedding(ids, weight[0]), normal(2, 5)).any()


def test_zero_stays_zero_and_minus_infinity_is_no_nan():
    assert not errors_of(torch.exp, np.full((2, 3), -np.inf)).any()
    assert np.isfinite(errors_of(lambda x: torch.softmax(x, dim=-1), np.array([[0.0, -np.inf], [1e5, -1e5]]))).all()
    scores = torch.full((2, REPEATS), -np.inf, dtype=torch.float64)
    with RoundingErrors(np.float32, seed=0):
        shifted = scores - 1.0
    assert torch.equal(shifted, scores)


def test_a_seed_gives_its_errors_again():
    x = normal(4, 6)
    assert np.array_equal(errors_of(torch.exp, x), errors_of(torch.exp, x))


def test_an_operation_of_unknown_errors_is_refused():
    with pytest.raises(NotImplementedError, match=r"the rounding errors of aten\.cumsum\.default are not known"):
        errors_of(lambda x: x.cumsum(dim=-1), normal(2, 3))


@settings(max_examples=10)
@given(step=steps())
def test_pytorchs_own_float32_errors_are_within_the_model(step):
    """They are judged by what rounding does alone, which has to allow a sound float32 computation."""
    model, batch = step.make(np.float32)
    judged_by = step_reference(model, batch)
    allowed = {name: scaled(rounding, FACTOR) for name, rounding in judged_by.rounding.items()}
    theirs = torch_step(to_torch(model), batch, batch.masks(model), copies=1)
    theirs = {name: np.asarray(tensor[0]) for name, tensor in theirs.items()}
    found = compare(theirs, judged_by.truth, allowed, dtype=np.float32)
    assert not [comparison for comparison in found if not comparison.passed]
