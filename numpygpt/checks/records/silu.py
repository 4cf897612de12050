"""`silu`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import silu


def draw(source: Source) -> Call:
    """Draw an x of any shape."""
    return Call({"x": source.normal(*source.rows())})


def complex_step(source: Source) -> Mapping[str, Call]:
    """Numbers on both sides of 0."""
    return {"": Call({"x": source.normal(3, 5)})}


SPECIAL = {"numbers of 1000": Call({"x": np.array([1e3, -1e3, 0.0])})}

BUGS = (
    Bug(
        "silu_slope_without_x",
        "the slope is that of the sigmoid alone",
        "Liger-Kernel#1435",
        "operations.silu.d_x",
        ("operations", "operations_complex_step"),
        (Change("ops.silu:backward", "s * (1 + x * (1 - s))", "s"),),
    ),
)

RECORD = Record(silu, draw, SPECIAL, complex_step, BUGS)
