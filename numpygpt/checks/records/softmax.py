"""`softmax`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import softmax

_BUFFER = "np.empty(x.shape, x.dtype)"


def draw(source: Source) -> Call:
    """Draw scores of any size, some of which may be -inf."""
    x = source.normal(*source.rows(), source.size(6))
    if source.yes():
        x[source.rng.random(x.shape) < source.choose.one_of([0.3, 0.9])] = -np.inf
    return Call({"x": x})


def complex_step(source: Source) -> Mapping[str, Call]:
    """A call with scores of ordinary size."""
    return {"": Call({"x": source.normal(2, 5, 7)})}


SPECIAL = {
    "scores of 1e5": Call(
        {"x": np.array([[1e5, -1e5, 0.0, 99_999.0], [-1e5, -1e5, -1e5, -1e5], [1e5, 1e5, -1e5, 1e5]])}
    ),
    "masked scores": Call({"x": np.array([[1.0, -np.inf, -np.inf], [0.0, 2.0, -np.inf]])}),
    "a row of -inf alone": Call({"x": np.array([[-np.inf, -np.inf], [1.0, -np.inf], [2.0, 3.0]])}),
}

BUGS = (
    Bug(
        "softmax_without_backward",
        "softmax passes its gradient through; a cotangent of ones sees nothing",
        "candle#3569",
        "d_trf_blocks.1.att.attn_scores",
        ("gradients", "complex_step"),
        (Change("ops.softmax:backward", "d_x -= y * d_x.sum(axis=-1, keepdims=True)", "d_x[...] = d_y"),),
    ),
    Bug(
        "softmax_of_nothing_is_nan",
        "for a query that may see no key, -inf is subtracted from -inf, which is NaN",
        "pytorch#41508",
        "packed.trf_blocks.0.att.attn_weights",
        ("masks", "packing"),
        (
            Change("ops.softmax:forward", "highest[highest == -np.inf] = 0", "pass"),
            Change("ops.softmax:forward", "total[total == 0] = 1", "pass"),
        ),
    ),
    Bug(
        "float64_inside",
        "a buffer has NumPy's default dtype, so float32 comes out as float64",
        "autograd#671",
        "none",
        ("dtypes",),
        (Change("ops.softmax:forward", _BUFFER, "np.empty(x.shape, complex if x.dtype.kind == 'c' else float)"),),
    ),
    Bug(
        "float32_inside",
        "a buffer is float32 inside a float64 computation",
        "autograd#671",
        "trf_blocks.0.att.attn_weights",
        ("dtypes", "forward"),
        (Change("ops.softmax:forward", _BUFFER, "np.empty(x.shape, x.dtype if x.dtype.kind == 'c' else np.float32)"),),
    ),
)

RECORD = Record(softmax, draw, SPECIAL, complex_step, BUGS)
