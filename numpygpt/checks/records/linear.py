"""`linear`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import linear


def draw(source: Source) -> Call:
    """Draw an x of any shape, with a bias or without."""
    outputs, inputs = source.size(6), source.size(6)
    arguments = {"x": source.normal(*source.rows(), inputs), "weight": source.normal(outputs, inputs)}
    if source.yes():
        arguments["bias"] = source.normal(outputs)
    return Call(arguments, {"wanted": source.wanted(*arguments)})


def complex_step(source: Source) -> Mapping[str, Call]:
    """A call with a bias, and one without."""
    x, weight, bias = source.normal(2, 5, 12), source.normal(7, 12), source.normal(7)
    return {"": Call({"x": x, "weight": weight, "bias": bias}), "no bias": Call({"x": x, "weight": weight})}


SPECIAL = {
    "one number": Call({"x": np.array([[3.0]]), "weight": np.array([[-2.0]]), "bias": np.array([0.5])}),
    "no gradient for x": Call(
        {"x": np.arange(6.0).reshape(2, 3), "weight": np.ones((4, 3)), "bias": np.ones(4)},
        {"wanted": ("weight", "bias")},
    ),
}

BUGS = (
    Bug(
        "bias_gradient_averaged",
        "the bias gets the mean over rows, not the sum",
        "no public report known",
        "d_trf_blocks.1.ff.layers.2.bias",
        ("gradients", "complex_step"),
        (Change("ops.linear:backward", "d_rows.sum(axis=0)", "d_rows.mean(axis=0)"),),
    ),
)

CONTROLS = (
    Bug(
        "bias_summed_backwards",
        "the bias gradient is summed from the last row to the first",
        "control",
        "none",
        (),
        (Change("ops.linear:backward", "d_rows.sum(axis=0)", "d_rows[::-1].sum(axis=0)"),),
    ),
)

RECORD = Record(linear, draw, SPECIAL, complex_step, BUGS, CONTROLS)
