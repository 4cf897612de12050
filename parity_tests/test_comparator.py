"""The comparator is tested before it is trusted: it passes what is right, and finds every fault in every place."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numpygpt.checks.compare import Norms, compare, difference, finite_norms, norms, normwise
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from parity_tests.strategies import seeds
from parity_tests.tolerances import FLOAT64_NORMWISE
from torchgpt.checks.parity import Batch, numpy_step, step_reference

#: With these no reference is zero: there is no bias of the keys, there are at least two tokens, and targets count.
CONFIG = GPTConfig(
    vocab_size=5, context_length=4, emb_dim=6, n_heads=2, n_layers=1, drop_rate=0.0, qkv_bias=False, tie_weights=False
)


def step_on(model, rng, dtype):
    inputs, targets = rng.integers(0, CONFIG.vocab_size, (2, 2, 3))
    batch = Batch(inputs, targets, d_logits=rng.standard_normal((2, 3, CONFIG.vocab_size)).astype(dtype))
    return numpy_step(model, batch), step_reference(model, batch)


def run_of(dtype, seed):
    """A step's tensors, what they are judged by, and the tensors of an earlier step of the same model."""
    rng = np.random.default_rng(seed)
    model = GPTModel(CONFIG, dtype=dtype)
    for parameter in model.named_parameters().values():
        parameter[...] = rng.standard_normal(parameter.shape)
    previous, _ = step_on(model, rng, dtype)
    return *step_on(model, rng, dtype), previous


any_run = given(dtype=st.sampled_from([np.float32, np.float64]), seed=seeds, index=st.integers(0, 999))


def with_element(array, index, value):
    changed = array.copy()
    changed.flat[index % array.size] = value
    return changed


def other_dtype(array):
    return array.astype({4: np.float64, 8: np.float32}[array.itemsize])


#: fault(array, any index, the same tensor of the previous run) spoils an array; if it is None, the tensor is missing.
FAULTS = {
    "NaN": lambda array, index, _: with_element(array, index, np.nan),
    "plus infinity": lambda array, index, _: with_element(array, index, np.inf),
    "an element far off": lambda array, index, _: with_element(array, index, 2 * finite_norms(array).tensor + 1),
    "missing": lambda *_: None,
    "an axis more": lambda array, *_: array[np.newaxis],
    "an element less": lambda array, *_: array.reshape(-1)[1:],
    "another dtype": lambda array, *_: other_dtype(array),
    "zeroed": lambda array, *_: np.zeros_like(array),
    "negated": lambda array, *_: -array,
    "stale": lambda _array, _index, previous: previous,
    "part of the previous run's memory": lambda _array, _index, previous: previous[...],
}


def failed(ours, judged_by, dtype, previous=None):
    found = compare(ours, judged_by.truth, judged_by.allowed, dtype=dtype, previous=previous)
    return [comparison.name for comparison in found if not comparison.passed]


@settings(max_examples=3)
@any_run
def test_every_fault_in_every_tensor_fails_that_tensor_and_no_other(dtype, seed, index):
    ours, judged_by, previous = run_of(dtype, seed)
    assert not failed(ours, judged_by, dtype, previous)
    for name, other in pairwise([*ours, next(iter(ours))]):
        two = judged_by._replace(truth={each: judged_by.truth[each] for each in (name, other)})
        for what, fault in FAULTS.items():
            changed = fault(ours[name], index, previous[name])
            tensors = {other: ours[other]} | ({} if changed is None else {name: changed})
            assert failed(tensors, two, dtype, previous) == [name], what


@settings(max_examples=3)
@any_run
def test_an_unexpected_tensor_a_nan_in_the_reference_and_another_mask_fail(dtype, seed, index):
    ours, judged_by, _ = run_of(dtype, seed)
    assert failed({**ours, "trf_blocks.1": ours["trf_blocks.0"]}, judged_by, dtype) == ["trf_blocks.1"]
    for name, truth in judged_by.truth.items():
        broken = judged_by._replace(truth={**judged_by.truth, name: with_element(truth, index, np.nan)})
        assert failed(ours, broken, dtype) == [name]
    scores = "trf_blocks.0.att.attn_scores"
    masked = np.flatnonzero(np.isinf(ours[scores]))
    for value in (-1e4, np.inf, np.finfo(dtype).min):
        changed = with_element(ours[scores], masked[index % len(masked)], value)
        assert failed({**ours, scores: changed}, judged_by, dtype) == [scores]


def test_a_wrong_row_fails_however_large_the_other_rows_are():
    reference = np.array([[1e12, 1e12], [1.0, 1.0]])
    allowed = {"x": Norms(1.0, np.array([1.0, 1e-12]))}
    wrong = np.array([[1e12, 1e12], [1.0, 1.0 + 1e-11]])
    (comparison,) = compare({"x": wrong}, {"x": reference}, allowed, dtype=np.float64)
    assert comparison.error <= comparison.allowed
    assert not comparison.passed


def test_a_small_tensors_error_counts_as_much_as_a_large_ones():
    for size in (10, 100_000):
        reference = np.random.default_rng(0).standard_normal(size)
        for factor, passed in ((0.5, True), (2.0, False)):
            allowed = normwise(reference)
            ours = {"x": reference * (1 + factor * allowed.tensor / norms(reference).tensor)}
            (comparison,) = compare(ours, {"x": reference}, {"x": allowed}, dtype=np.float64)
            assert comparison.passed == passed


@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-17])
def test_a_reference_of_zero_is_judged_on_the_scale_of_its_rounding(size):
    reference, allowed = {"x": np.zeros(3)}, {"x": Norms(size, np.array([size]))}
    for error, passed in ((size / 2, True), (size * 2 + 1e-310, False)):
        (comparison,) = compare({"x": np.array([0.0, error, 0.0])}, reference, allowed, dtype=np.float64)
        assert comparison.passed == passed
        assert comparison.zero


def test_norms_neither_overflow_nor_underflow():
    for size in (1e-200, 1.0, 1e200):
        found = norms(np.array([[3.0, 4.0], [0.0, 12.0]]) * size).tensor
        assert abs(found - 13 * size) <= FLOAT64_NORMWISE * size
    assert norms(np.float32(-2)).rows.tolist() == [2.0]
    infinite = np.array([-np.inf, 1.0])
    assert difference(infinite, infinite).tensor == 0
    assert difference(infinite, -infinite).tensor == np.inf
    assert np.isnan(difference(np.array([np.nan]), np.array([np.nan])).tensor)


def test_a_tensor_told_twice_is_not_recorded_over():
    class Model(GPTModel):
        def forward(self, in_idx, *, watch, **options):
            watch("logits", np.zeros(1))
            return super().forward(in_idx, watch=watch, **options)

    ids = np.zeros((1, 2), int)
    with pytest.raises(ValueError, match="logits was told twice"):
        numpy_step(Model(CONFIG), Batch(ids, ids))
