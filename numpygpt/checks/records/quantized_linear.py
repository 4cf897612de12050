"""`quantized_linear`: calls of it, and real mistakes in it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source, at_random
from numpygpt.numerics import schemes
from numpygpt.ops import quantized_linear
from numpygpt.tree import mapped

#: Schemes and block sizes: with a step a row, with blocks that end within a row, with codes of levels in tails.
WAYS: tuple[tuple[str, int | str], ...] = (
    ("int8", "row"), ("int8", "tensor"), ("int8", 5), ("int4", "row"), ("int4", 3), ("zero_point8", "row"),
    ("zero_point4", 7), ("dynamic8", 4), ("quantile4", 64), ("fp4", 6), ("nf4", 64), ("nf4", 3),
)  # fmt: skip


def draw(source: Source) -> Call:
    """Draw an x of any shape, a weight by any scheme, and a bias or none."""
    outputs, inputs = source.size(6), source.size(6)
    scheme, block_size = source.choose.one_of(WAYS)
    arguments = {
        "x": source.normal(*source.rows(), inputs),
        "weight": schemes.quantize(source.normal(outputs, inputs), scheme, block_size),
    }
    if source.yes():
        arguments["bias"] = source.normal(outputs)
    return Call(arguments, {"wanted": source.wanted("x", *(["bias"] if "bias" in arguments else []))})


def complex_step(source: Source) -> Mapping[str, Call]:
    """A call with a step a row, and some with levels in blocks whose constants are quantized."""
    x, weight, bias = source.normal(2, 5, 12), source.normal(7, 12), source.normal(7)
    row, wide = source.normal(1, 32), _in_float64(schemes.quantize(source.normal(7, 32), "nf4", 16, double=True))
    return {
        "": Call({"x": x, "weight": schemes.quantize(weight, "int8"), "bias": bias}),
        "nf4": Call({"x": x, "weight": _in_float64(schemes.quantize(weight, "nf4", 5, double=True)), "bias": bias}),
        "whole blocks": Call({"x": row, "weight": wide, "bias": bias}),
    }


def _in_float64(weight: schemes.Quantized) -> Any:
    """The same codes with constants in float64: complex step computes constants of constants in double precision."""
    return mapped(lambda array: array.astype(np.float64) if array.dtype == np.float32 else array, weight)


def _special() -> dict[str, Call]:
    source = at_random(0)
    many = {"x": source.normal(5, 8, 6), "weight": schemes.quantize(source.normal(4, 6), "nf4", 4)}
    outlier = source.normal(4, 6)
    outlier[2, 3] = 1e3
    return {
        "one number": Call({"x": np.array([[3.0]]), "weight": schemes.quantize(np.array([[-2.0]]), "nf4")}),
        "many rows": Call(many),
        "many rows, a step a row": Call({**many, "weight": schemes.quantize(outlier, "int8")}),
        "a weight of zeros": Call({"x": np.ones((2, 3)), "weight": schemes.quantize(np.zeros((4, 3)), "int8")}),
        "whole blocks": Call({"x": source.normal(1, 64), "weight": schemes.quantize(source.normal(5, 64), "fp4", 32)}),
        "an outlier": Call({"x": source.normal(3, 6), "weight": schemes.quantize(outlier, "int4", 6)}),
        "no gradient for x": Call(
            {
                "x": source.normal(2, 6),
                "weight": schemes.quantize(source.normal(4, 6), "fp4", 4),
                "bias": source.normal(4),
            },
            {"wanted": ("bias",)},
        ),
    }


_D_X = "ops.quantized_linear:_d_x"

BUGS = (
    Bug(
        "steps_forgotten_in_backward",
        "the forward multiplies by each row's step, and the gradient of x is that of the whole numbers",
        "no public report known",
        "whole_blocks.int8.None.d_x",
        ("packed_product", "packed_complex_step"),
        (Change(_D_X, "d_rows = d_rows * absmax.steps(weight, d_rows.dtype)", "pass"),),
    ),
    Bug(
        "rows_of_the_block_before",
        "every block of rows after the first is that before it",
        "no public report known",
        "whole_blocks.int8.None.y",
        ("packed_in_blocks", "packed_rows_alone"),
        (Change("ops.quantized_linear:_put_rows", "some.start * weight", "0 * weight"),),
    ),
    Bug(
        "last_block_of_rows_left_out",
        "rows that do not fill a block are not multiplied",
        "no public report known",
        "a_tail.int8.None.y",
        ("packed_in_blocks", "packed_rows_alone"),
        (Change("ops.quantized_linear:_blocks", "range(0, F, height)", "range(0, F - F % height, height)"),),
    ),
    Bug(
        "constants_of_the_first_rows",
        "in a product by blocks, all rows are multiplied by the constants of the first ones",
        "no public report known",
        "whole_blocks.quantile4.None.y",
        ("packed_in_blocks", "packed_rows_alone"),
        (
            Change(
                "ops.quantized_linear:_multiply_by_blocks",
                "codebook.constants(weight, first, last)",
                "codebook.constants(weight, 0, last - first)",
            ),
        ),
    ),
    Bug(
        "bias_gradient_of_packed_averaged",
        "the bias gets the mean over rows, not the sum",
        "no public report known",
        "whole_blocks.int8.None.d_bias",
        ("packed_product", "packed_complex_step"),
        (Change("ops.quantized_linear:backward", "d_rows.sum(axis=0)", "d_rows.mean(axis=0)"),),
    ),
)

RECORD = Record(quantized_linear, draw, _special(), complex_step, BUGS)
