"""Sampling at its limits: the lowest temperatures and nuclei give their limits, and bad logits are refused."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from numpygpt.decoding.sampling import choose, keep_top_p, softmax_with_temperature
from numpygpt.errors import InputError
from numpygpt.random.torch_generator import TorchGenerator

DTYPES = st.sampled_from([np.float32, np.float64])
LOWEST = [1e-30, 1e-45, 1e-50, 5e-324]


@st.composite
def rows_of_logits(draw):
    dtype = draw(DTYPES)
    scale = draw(st.sampled_from([1e-3, 1.0, 1e3, 1e30]))
    integers = draw(arrays.arrays(np.int64, (2, 7), elements=st.integers(-5, 5)))
    return (integers * scale).astype(dtype)


@given(logits=rows_of_logits(), temperature=st.sampled_from(LOWEST))
def test_the_lowest_temperatures_leave_the_largest_logits_alone(logits, temperature):
    """Equal logits share the probability. Differences below 1e-30 times the temperature do not occur."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probabilities = softmax_with_temperature(logits, temperature)
    largest = logits == logits.max(axis=-1, keepdims=True)
    expected = (largest / largest.sum(axis=-1, keepdims=True)).astype(logits.dtype)
    assert probabilities.dtype == logits.dtype
    assert np.array_equal(probabilities, expected)


@given(logits=rows_of_logits())
def test_the_highest_temperature_makes_all_equal(logits):
    probabilities = softmax_with_temperature(logits, 1e300)
    assert np.array_equal(probabilities, np.full_like(logits, 1 / 7))


@given(logits=rows_of_logits(), temperature=st.sampled_from(LOWEST), seed=st.integers(0, 99))
def test_the_lowest_temperatures_choose_a_largest_logit(logits, temperature, seed):
    chosen = choose(logits, temperature, None, None, TorchGenerator(seed))
    assert np.array_equal(np.take_along_axis(logits, chosen[:, np.newaxis], 1)[:, 0], logits.max(axis=1))


@given(seed=st.integers(0, 99), dtype=DTYPES, p=st.sampled_from([1e-300, 1e-50, 5e-324]))
def test_the_smallest_nucleus_is_the_likeliest_token(seed, dtype, p):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(5), 3).astype(dtype)
    kept = keep_top_p(probabilities, p)
    assert np.array_equal(kept.argmax(axis=-1), probabilities.argmax(axis=-1))
    assert np.array_equal(np.count_nonzero(kept, axis=-1), np.ones(3))
    logits = np.log(probabilities)
    chosen = choose(logits, 1.0, None, p, TorchGenerator(seed))
    assert np.array_equal(chosen, logits.argmax(axis=-1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("row", [[0, 1, np.nan], [0, 1, np.inf], [-np.inf] * 3], ids=str)
def test_logits_that_are_not_finite_are_told(temperature, top_k, row):
    with pytest.raises(InputError, match="the model's logits are not finite: its weights are damaged or too large"):
        choose(np.array([[0.0, 1.0, 2.0], row]), temperature, top_k, None, TorchGenerator(0))


def test_a_token_that_cannot_come_may_have_a_logit_of_minus_infinity():
    logits = np.array([[0.0, -np.inf, 1.0]])
    assert choose(logits, 0.0, None, None, TorchGenerator(0)).tolist() == [2]
    drawn = {choose(logits, 1e9, None, None, TorchGenerator(seed)).item() for seed in range(20)}
    assert drawn == {0, 2}
