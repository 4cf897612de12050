"""`gelu`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import gelu

_SLOPE = "s * (1 - s) * (2 * C * (1 + 3 * A * x * x))"
_ERF = "0.5 * (1 + np.vectorize(math.erf, otypes=[float])(x.real / math.sqrt(2)))"
_ERF_SLOPE = "np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)"


def draw(source: Source) -> Call:
    """Draw an x of any shape."""
    return Call({"x": source.normal(*source.rows(), source.size(6))})


def complex_step(source: Source) -> Mapping[str, Call]:
    """A call with values on both sides of 0."""
    return {"": Call({"x": source.normal(2, 5, 7)})}


SPECIAL = {"both tails": Call({"x": np.array([[0.0, -0.0, -5.0, 5.0, -20.0, 20.0, -1e5, 1e5]])})}

BUGS = (
    Bug(
        "erf_gelu",
        "the erf form stands in the place of the tanh form, forward and backward",
        "pocket-tts#278, nanoGPT#129",
        "trf_blocks.0.ff.layers.1",
        ("forward", "gradients"),
        (
            Change("ops.gelu:forward", "s *= 0.5", f"s[...] = {_ERF}"),
            Change("ops.gelu:backward", _SLOPE, _ERF_SLOPE),
        ),
    ),
    Bug(
        "erf_slope_under_tanh",
        "the forward is the tanh form and the backward the erf form's; a fast gradient check passes it",
        "numpy-ml",
        "d_trf_blocks.1.ff.layers.0",
        ("complex_step", "gradients"),
        (Change("ops.gelu:backward", _SLOPE, _ERF_SLOPE),),
    ),
    Bug(
        "six_digit_constants",
        "sqrt(2/π) is cut to six digits in the backward",
        "thinc, and a tolerance widened to let it pass",
        "d_trf_blocks.1.ff.layers.0",
        ("complex_step", "gradients"),
        (Change("ops.gelu:backward", "2 * C *", "2 * 0.797884 *"),),
    ),
    Bug(
        "gelu_without_x",
        "the sigmoid, which is (1 + tanh) / 2, lacks its factor x",
        "tfjs#8224",
        "trf_blocks.0.ff.layers.1",
        ("forward", "complex_step"),
        (Change("ops.gelu:forward", "np.multiply(x, s,", "np.multiply(1, s,"),),
    ),
)

CONTROLS = (
    Bug(
        "gelu_by_products",
        "u is computed as (c x) (1 + a x²)",
        "control",
        "none",
        (),
        (Change("ops.gelu:forward", "C * (x + A * x * x * x)", "C * x * (1 + A * (x * x))"),),
    ),
)

RECORD = Record(gelu, draw, SPECIAL, complex_step, BUGS, CONTROLS)
