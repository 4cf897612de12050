"""Small models with random parameters, and how their tensors are compared."""

import math
from typing import ClassVar

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from numpygpt.checks import own_gradients
from numpygpt.layers.key_value_cache import KeyValueCache
from numpygpt.model.config import ACTIVATIONS, GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.initialization import allocate
from numpygpt.tree import named
from parity_tests.tolerances import FLOAT64_NORMWISE

#: Fewer examples, because a whole model is slow under the suite's checks of types and shapes.
FEWER = settings(max_examples=max(1, settings().max_examples // 5))


@st.composite
def configs(draw, **fixed):
    n_heads = draw(st.integers(1, 3))
    fields = {
        "vocab_size": draw(st.integers(2, 13)),
        "context_length": draw(st.integers(2, 6)),
        "emb_dim": n_heads * draw(st.integers(4, 6)),  # two features normalize to ±1, with next to no gradient
        "n_heads": n_heads,
        "n_layers": draw(st.integers(1, 2)),
        "drop_rate": draw(st.sampled_from([0.0, 0.3])),
        "qkv_bias": draw(st.booleans()),
        "tie_weights": draw(st.booleans()),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "bias": draw(st.booleans()),
        "norm_eps": draw(st.sampled_from([1e-5, 0.1])),
    }
    return GPTConfig(**{**fields, **fixed})


def model_of(config, seed, dtype=np.float64):
    """A model whose parameters are all random, including scales and shifts."""
    rng = np.random.default_rng(seed)
    arrays = dict(named(allocate(config, dtype)))
    if config.tie_weights:
        del arrays["out_head.weight"]
    return GPTModel.from_state_dict(config, {n: rng.standard_normal(a.shape) / 2 for n, a in arrays.items()}, dtype)


def ids_of(config, seed, batch=2, tokens=None):
    shape = (batch, config.context_length if tokens is None else tokens)
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape)


def norm(x):
    return math.sqrt((x * x).sum())


def assert_agrees(ours, expected):
    assert ours.shape == expected.shape
    assert norm(ours - expected) <= FLOAT64_NORMWISE * norm(expected)


def assert_same_gradients(ours, expected):
    """The gradients agree to gradcheck's threshold. Some are zero, except for rounding."""
    wrong = [verdict for verdict in own_gradients.judge("", ours, expected) if verdict.passed is False]
    assert not wrong
    assert list(ours) == list(expected)


def copies(arrays):
    return {name: array.copy() for name, array in arrays.items()}


def assert_equal(ours, expected):
    """Both have the same names in the same order, and the same values."""
    assert list(ours) == list(expected)
    for name in expected:
        assert np.array_equal(ours[name], expected[name]), name


def arrays_in(tree):
    """Every array in nested tuples, lists and named records."""
    if isinstance(tree, (np.ndarray, np.generic)):
        yield tree
    elif isinstance(tree, KeyValueCache):
        yield from (tree.keys, tree.values)
    elif isinstance(tree, (tuple, list)):
        for child in tree:
            yield from arrays_in(child)


class Followed(np.ndarray):
    """An array that notes every universal function that is computed with it, or with anything computed from it.

    calls   (function, operands, result) of each, among them np.matmul
    """

    calls: ClassVar[list[tuple]] = []

    def __array_ufunc__(self, ufunc, method, *operands, out=None, **options):
        if out is not None:
            options["out"] = tuple(map(_plain, out))
        result = getattr(ufunc, method)(*map(_plain, operands), **options)
        Followed.calls.append((ufunc, operands, result))
        return result.view(Followed) if isinstance(result, np.ndarray) else result

    def __array_function__(self, function, types, arguments, options):
        """NumPy's `where` gives a plain array, whatever it chooses from; here what it chose is followed, too."""
        result = super().__array_function__(function, types, arguments, options)
        return result.view(Followed) if function is np.where and len(arguments) == 3 else result


def _plain(operand):
    return operand.view(np.ndarray) if isinstance(operand, Followed) else operand


def followed(tree):
    """The tree with every array followed. What was noted before is forgotten."""
    Followed.calls.clear()
    return _followed(tree)


def _followed(tree):
    if isinstance(tree, np.ndarray):
        return tree.view(Followed)
    if isinstance(tree, dict):
        return {name: _followed(child) for name, child in tree.items()}
    if isinstance(tree, list):
        return [_followed(child) for child in tree]
    if isinstance(tree, tuple):
        children = map(_followed, tree)
        return tree._make(children) if hasattr(tree, "_fields") else tuple(children)
    return tree
