"""`casting`: real mistakes in what is rounded to the format of an operation."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.numerics import casting

_FORWARD, _BACKWARD = "numerics.casting:forward", "numerics.casting:backward"
_UNKNOWN = "no public report known"

BUGS = (
    Bug(
        "gradients_in_float32",
        "the backward of an operation in the lower format gives gradients that are not rounded to it",
        _UNKNOWN,
        "bf16_cuda.d_final_norm",
        ("formats_of_tensors", "one_rounding"),
        (
            Change(
                _BACKWARD,
                "gradients._make(_in_format(gradient, saved.format_) for gradient in gradients)",
                "gradients",
            ),
        ),
    ),
    Bug(
        "result_in_float32",
        "the product of rounded factors is not rounded itself",
        _UNKNOWN,
        "bf16_cuda.trf_blocks.0.att.queries",
        ("formats_of_tensors", "one_rounding"),
        (Change(_FORWARD, "return _in_format(y, format_), Saved", "return y, Saved"),),
    ),
    Bug(
        "operands_in_float32",
        "the result is rounded, and the factors are not, so that the master weights are multiplied",
        _UNKNOWN,
        "bf16_cuda.trf_blocks.0.att.queries",
        ("one_rounding", "reads_rounded_weights"),
        (Change(_FORWARD, "*(_in_format(operand, format_) for operand in operands)", "*operands"),),
    ),
    Bug(
        "gradient_of_the_result_in_float32",
        "the backward reads a gradient that is not rounded to the format of its result",
        _UNKNOWN,
        "bf16_cuda.d_final_norm",
        ("one_rounding",),
        (Change(_BACKWARD, "operation.backward(_in_format(d_y, saved.format_),", "operation.backward(d_y,"),),
    ),
)

RECORD = BugsOnly(casting, "its forward and backward are those of the operation that it is given", BUGS)
