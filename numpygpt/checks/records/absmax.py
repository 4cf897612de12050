"""`absmax` of `numpygpt.numerics`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.numerics import absmax

BUGS = (
    Bug(
        "one_code_too_many",
        "the largest value gets the code 128, or 8, for which there is no room: it becomes the most negative one",
        "no public report known",
        "whole_blocks.int8.None.codes",
        ("errors_bounded", "bitsandbytes_codes"),
        (Change("numerics.absmax:largest_code", "2 ** (bits - 1) - 1", "2 ** (bits - 1)"),),
    ),
    Bug(
        "step_of_128_parts",
        "quantized by 127 parts of the largest value, and dequantized by 128: all is 0.8 % too small",
        "no public report known",
        "whole_blocks.int8.None.values",
        ("errors_bounded", "codes_by_hand"),
        (Change("numerics.absmax:steps", "largest_code(quantized.bits), dtype", "2 ** (quantized.bits - 1), dtype"),),
    ),
    Bug(
        "codes_by_truncation",
        "the fraction is cut off, so that every value moves toward zero",
        "no public report known",
        "whole_blocks.int8.None.codes",
        ("errors_bounded", "bitsandbytes_codes"),
        (Change("numerics.absmax:quantize", "np.rint(numbers, out=numbers)", "np.trunc(numbers, out=numbers)"),),
    ),
    Bug(
        "largest_held_at_a_floor",
        "so that 127 / largest is finite, the largest value counts as at least 1e-36: smaller blocks get wrong codes",
        "no public report known",
        "tiny.int8.None.codes",
        ("errors_bounded",),
        (Change("numerics.absmax:quantize", "np.where(absmax < SMALLEST, LIFT,", "np.where(absmax < SMALLEST, 1,"),),
    ),
)

RECORD = BugsOnly(absmax, "quantization has no derivative", BUGS)
