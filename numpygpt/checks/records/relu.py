"""`relu`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import relu


def draw(source: Source) -> Call:
    """Draw an x of any shape."""
    return Call({"x": source.normal(*source.rows())})


def complex_step(source: Source) -> Mapping[str, Call]:
    """Numbers on both sides of 0."""
    return {"": Call({"x": source.normal(3, 5)})}


SPECIAL = {"the kink": Call({"x": np.array([0.0, -0.0, 1.0, -1.0])})}

BUGS = (
    Bug(
        "relu_passes_negative_gradients_back",
        "the backward goes by the sign of the gradient, not of the input",
        "no public report known",
        "operations.relu.d_x",
        ("operations", "operations_complex_step"),
        (Change("ops.relu:backward", "np.where(saved.flat, 0, d_y)", "np.where(d_y > 0, d_y, 0)"),),
    ),
)

RECORD = Record(relu, draw, SPECIAL, complex_step, BUGS)
