"""`lora`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import lora


def draw(source: Source) -> Call:
    """Draw an x of any shape, and matrices of any rank up to the full one."""
    outputs, inputs = source.size(6), source.size(6)
    rank = source.choose.integer(1, min(outputs, inputs))
    arguments = {
        "x": source.normal(*source.rows(), inputs),
        "A": source.normal(rank, inputs),
        "B": source.normal(outputs, rank),
    }
    return Call(arguments, {"scale": source.choose.one_of([1.0, 2.0, 0.25]), "wanted": source.wanted(*arguments)})


def complex_step(source: Source) -> Mapping[str, Call]:
    """Rank 1, a rank between, and the full one."""

    def call(rank: int) -> Call:
        arrays = {"x": source.normal(2, 5, 12), "A": source.normal(rank, 12), "B": source.normal(7, rank)}
        return Call(arrays, {"scale": 16 / rank})

    return {"": call(3), "rank 1": call(1), "full rank": call(7)}


SPECIAL = {
    "B is zero, as at the start": Call(
        {"x": np.arange(6.0).reshape(2, 3), "A": np.ones((2, 3)), "B": np.zeros((4, 2))}, {"scale": 0.5}
    ),
    "no gradient for x": Call(
        {"x": np.arange(6.0).reshape(2, 3), "A": np.ones((1, 3)), "B": np.ones((4, 1))},
        {"scale": 2.0, "wanted": ("A", "B")},
    ),
}

BUGS = (
    Bug(
        "lora_gradient_of_A_unscaled",
        "the scale is left out on the way to A and x",
        "no public report known",
        "adapted.d_final_norm",
        ("adapters", "adapters_complex_step"),
        (Change("ops.lora:backward", "d_low = scale * product(d_rows, B)", "d_low = product(d_rows, B)"),),
    ),
    Bug(
        "lora_gradient_of_B_unscaled",
        "the scale is left out in the gradient of B",
        "no public report known",
        "adapted.d_out_head.lora_B.second.weight",
        ("adapters", "adapters_complex_step"),
        (Change("ops.lora:backward", "product(d_rows.T, scale * low)", "product(d_rows.T, low)"),),
    ),
)

CONTROLS = (
    Bug(
        "lora_scaled_at_the_end",
        "the output is scaled, not the low-rank input",
        "control",
        "none",
        (),
        (Change("ops.lora:forward", "product(scale * low, B.T)", "scale * product(low, B.T)"),),
    ),
)

RECORD = Record(lora, draw, SPECIAL, complex_step, BUGS, CONTROLS)
