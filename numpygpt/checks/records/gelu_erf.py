"""`gelu_erf`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import gelu_erf

_FORWARD = "ops.gelu_erf:forward"
_BACKWARD = "ops.gelu_erf:backward"
_DENSITY = "np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))"
_SLOPE_OF_U = "math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)"


def draw(source: Source) -> Call:
    """Draw an x of any shape."""
    return Call({"x": source.normal(*source.rows(), source.size(6))})


def complex_step(source: Source) -> Mapping[str, Call]:
    """A call with values on both sides of 0."""
    return {"": Call({"x": source.normal(2, 5, 7)})}


SPECIAL = {"both tails": Call({"x": np.array([[0.0, -0.0, -5.0, 5.0, -20.0, 20.0, -1e5, 1e5]])})}

BUGS = (
    Bug(
        "tanh_gelu",
        "the tanh form stands in the place of the exact form, forward and backward",
        "no public report known",
        "trf_blocks.0.ff.layers.1",
        ("forward", "gradients"),
        (
            Change(_FORWARD, "erf(u, out=s)", "np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x), out=s)"),
            Change(_BACKWARD, _DENSITY, f"2 * s * (1 - s) * {_SLOPE_OF_U}"),
        ),
    ),
    Bug(
        "erf_for_the_distribution",
        "erf(x) stands in the place of erf(x / sqrt(2))",
        "no public report known",
        "trf_blocks.0.ff.layers.1",
        ("forward", "complex_step"),
        (Change(_FORWARD, "x * (1 / math.sqrt(2))", "x * 1"),),
    ),
    Bug(
        "erf_not_halved",
        "1 + erf is not halved, so twice the share passes",
        "no public report known",
        "trf_blocks.0.ff.layers.1",
        ("forward", "complex_step"),
        (Change(_FORWARD, "s *= 0.5", "s *= 1"),),
    ),
    Bug(
        "density_without_x",
        "the density in the slope lacks its factor x",
        "no public report known",
        "d_trf_blocks.1.ff.layers.0",
        ("complex_step", "gradients"),
        (Change(_BACKWARD, "s + x * ds_dx", "s + ds_dx"),),
    ),
    Bug(
        "density_of_erf",
        "the slope has erf's derivative, 2 exp(-x²) / sqrt(π), in the place of the density",
        "no public report known",
        "d_trf_blocks.1.ff.layers.0",
        ("complex_step", "gradients"),
        (Change(_BACKWARD, _DENSITY, "np.exp(-x * x) * (2 / math.sqrt(math.pi))"),),
    ),
)

CONTROLS = (
    Bug(
        "gelu_erf_by_division",
        "x is divided by sqrt(2)",
        "control",
        "none",
        (),
        (Change(_FORWARD, "x * (1 / math.sqrt(2))", "x / math.sqrt(2)"),),
    ),
)

RECORD = Record(gelu_erf, draw, SPECIAL, complex_step, BUGS, CONTROLS)
