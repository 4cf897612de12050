"""`sigmoid`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import sigmoid


def draw(source: Source) -> Call:
    """Draw an x of any shape."""
    return Call({"x": source.normal(*source.rows())})


def complex_step(source: Source) -> Mapping[str, Call]:
    """Numbers on both sides of 0."""
    return {"": Call({"x": source.normal(3, 5)})}


SPECIAL = {"numbers of 1000": Call({"x": np.array([1e3, -1e3, 0.0])})}

BUGS = (
    Bug(
        "sigmoid_of_large_numbers_is_nan",
        "exp(x) / (1 + exp(x)) of a large number is infinity by infinity",
        "no public report known",
        "none",
        ("operations_at_extremes", "objectives"),
        (
            Change(
                "ops.sigmoid:forward",
                "np.where(negative, small, 1) / (1 + small)",
                "np.exp(x) / (1 + np.exp(x))",
            ),
        ),
    ),
    Bug(
        "sigmoid_slope_of_its_input",
        "the slope is 1 - y, without its factor y",
        "no public report known",
        "operations.sigmoid.d_x",
        ("operations", "operations_complex_step"),
        (Change("ops.sigmoid:backward", "d_y * saved.y * (1 - saved.y)", "d_y * (1 - saved.y)"),),
    ),
)

RECORD = Record(sigmoid, draw, SPECIAL, complex_step, BUGS)
