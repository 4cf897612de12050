"""Temperature, top-k and top-p in combination, against Hugging Face's logits processors.

Both keep k tokens, then apply the temperature, and then keep the nucleus. (Hugging Face applies the temperature first,
which does not change the order of the logits.) Ties differ by design: if logits are equal at the edge of top-k, Hugging
Face keeps all of them, and we keep the lowest ids, so that k are kept. So logits that all differ are compared with
Hugging Face, and equal logits with a definition in plain Python.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from numpygpt.decoding.sampling import choose, keep_top_p, softmax_with_temperature
from numpygpt.random.torch_generator import TorchGenerator
from parity_tests.properties import agree
from parity_tests.strategies import seeds
from parity_tests.tolerances import FLOAT64_NORMWISE

V = 12

#: Temperatures from 1e-45 to 1e30. They are powers of two, so that a quotient is exact and neither side rounds it.
temperatures = st.sampled_from([2.0**exponent for exponent in (-149, -60, -10, -1, 0, 1, 3, 10, 100)])
top_ks = st.none() | st.sampled_from([1, 2, 5, V - 1, V, V + 1, 10**9])
LIMITS = [1.0, 1e-9, 1e-300, 5e-324]  # limits of top_p: all tokens, or only the likeliest
top_ps = st.none() | st.floats(0.01, 0.99) | st.sampled_from([*LIMITS, 1 - 2.0**-53])


class Seen(TorchGenerator):
    """A generator that keeps the probabilities that it is asked to draw from."""

    def multinomial(self, probabilities, num_samples=1, replacement=False):
        self.probabilities = probabilities
        return super().multinomial(probabilities, num_samples, replacement)


def ours(logits, temperature, top_k, top_p):
    """The probabilities with which tokens are drawn, and the tokens that are drawn."""
    rng = Seen(0)
    chosen = choose(logits, temperature, top_k, top_p, rng)
    return rng.probabilities / rng.probabilities.sum(axis=-1, keepdims=True), chosen


def huggingfaces(logits, temperature, top_k, top_p):
    """The same by Hugging Face, in float64."""
    processors = [TemperatureLogitsWarper(temperature)]
    processors += [] if top_k is None else [TopKLogitsWarper(top_k)]
    processors += [] if top_p is None else [TopPLogitsWarper(top_p)]
    scores = torch.from_numpy(logits.astype(np.float64))
    for processor in processors:
        scores = processor(None, scores)
    return torch.softmax(scores, dim=-1).numpy()


def all_different(seed, scale, dtype):
    """Rows of logits that float32 holds exactly, in random order; no two are equal."""
    rng = np.random.default_rng(seed)
    return (rng.permuted(np.tile(np.arange(V), (3, 1)), axis=1) * scale / 4 - scale).astype(dtype)


def at_the_edge(logits, temperature, top_k, top_p):
    """Whether rounding decides if some token is in the nucleus."""
    probabilities = np.sort(huggingfaces(logits, temperature, top_k, None), axis=-1)
    sums = np.cumsum(probabilities, axis=-1)
    return top_p is not None and bool((np.abs(sums - (1 - top_p)) < V * np.finfo(logits.dtype).eps).any())


@given(
    seed=seeds,
    scale=st.sampled_from([0.25, 1.0, 8.0]),
    dtype=st.sampled_from([np.float32, np.float64]),
    temperature=temperatures,
    top_k=top_ks,
    top_p=top_ps,
)
def test_the_kept_tokens_and_their_probabilities_are_huggingfaces(seed, scale, dtype, temperature, top_k, top_p):
    """In float32 too the same tokens are kept, or as many of the same probability if rounding makes some equal."""
    logits = all_different(seed, scale, dtype)
    options = temperature, top_k, top_p
    assume(top_p is None or top_p in LIMITS or not at_the_edge(logits, *options))
    probabilities, chosen = ours(logits, *options)
    expected = huggingfaces(logits, *options)
    assert probabilities.dtype == dtype
    assert np.isfinite(probabilities).all()
    assert (np.take_along_axis(probabilities, chosen[:, np.newaxis], axis=1) > 0).all()
    for row, expected_row in zip(probabilities, expected.astype(dtype), strict=True):
        assert np.count_nonzero(row) == np.count_nonzero(expected_row)
        if len(set(expected_row[expected_row > 0])) == np.count_nonzero(expected_row) and top_p is None:
            assert np.array_equal(row > 0, expected_row > 0)
        if dtype == np.float64:
            agree(np.sort(row), np.sort(expected_row), "probabilities of the kept tokens")


def kept_by_definition(logits, temperature, top_k, top_p):
    """The tokens that may be drawn from one row, by exact fractions. Of equal logits, the lowest ids come first."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:top_k]
    highest = logits[order[0]]
    weights = [Fraction(math.exp(float((logits[token] - highest) / temperature))) for token in order]
    if top_p is None:
        return [token for token, weight in zip(order, weights, strict=True) if weight]
    kept, total = [], Fraction(0)
    for token, weight in zip(order, weights, strict=True):
        if total >= Fraction(top_p) * sum(weights) or not weight:
            break
        kept.append(token)
        total += weight
    return kept


@given(
    seed=seeds,
    dtype=st.sampled_from([np.float32, np.float64]),
    temperature=st.sampled_from([0.5, 1.0, 4.0, 1e-45]),
    top_k=top_ks,
    top_p=st.none() | st.sampled_from([0.1, 0.3, 0.6, 0.9, 1.0, 1e-300]),
)
def test_of_equal_logits_the_lowest_ids_are_kept(seed, dtype, temperature, top_k, top_p):
    """All logits are -1, 0 or 1; there are four of each on average."""
    logits = np.random.default_rng(seed).integers(-1, 2, (3, V)).astype(dtype)
    probabilities, _ = ours(logits, temperature, top_k, top_p)
    for row, row_of_logits in zip(probabilities, logits.astype(np.float64), strict=True):
        kept = kept_by_definition(row_of_logits, temperature, top_k, top_p)
        others_too = kept_by_definition(row_of_logits, temperature, top_k, top_p and min(1.0, top_p + 1e-6))
        assume(kept == others_too)  # rounding decides nothing
        assert np.flatnonzero(row).tolist() == sorted(kept)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_a_nucleus_of_everything_loses_no_token_of_a_large_vocabulary(dtype, scale):
    """In float32 the probabilities of 50,257 tokens sum to 1 only up to rounding, which must not cut the last ones."""
    logits = (scale * np.random.default_rng(0).standard_normal((2, 50257))).astype(dtype)
    probabilities = softmax_with_temperature(logits, 1.0)
    assert np.array_equal(keep_top_p(probabilities, 1.0), probabilities)
    rounding = np.finfo(dtype).eps
    for p in np.linspace(0.05, 0.999, 20):
        for row, kept in zip(probabilities.astype(np.float64), keep_top_p(probabilities, p), strict=True):
            probability = 1 - row[kept == 0].sum()
            assert probability >= p - rounding, "enough is kept"
            assert probability - row[kept > 0].min() < p + rounding, "and not one token more"


def test_each_row_of_a_batch_is_cut_by_itself():
    logits = np.random.default_rng(0).standard_normal((4, V))
    together, _ = ours(logits, 0.7, 8, 0.8)
    for row in range(4):
        alone, _ = ours(logits[row : row + 1], 0.7, 8, 0.8)
        assert np.abs(alone[0] - together[row]).max() <= FLOAT64_NORMWISE
