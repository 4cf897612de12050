"""`zero_point` of `numpygpt.numerics`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.numerics import zero_point

_QUANTIZE = "numerics.zero_point:quantize"

BUGS = (
    Bug(
        "zero_point_by_truncation",
        "the code of zero is cut off, not rounded, so that it may be one too low",
        "onnxruntime#25823",
        "whole_blocks.zero_point8.None.codes",
        ("pytorch_codes", "codes_by_hand"),
        (Change(_QUANTIZE, "np.rint(-lowest / steps)", "np.floor(-lowest / steps)"),),
    ),
    Bug(
        "codes_not_clipped",
        "a code of 256 becomes 0, so that the largest value becomes the smallest",
        "executorch#2167",
        "beside_middles.zero_point4.7.codes",
        ("pytorch_codes", "errors_bounded"),
        (Change(_QUANTIZE, "np.clip(numbers, 0, largest).astype(np.uint8)", "numbers.astype(np.uint8)"),),
    ),
    Bug(
        "zero_not_in_the_range",
        "the range goes from the smallest value to the largest, and zero has no code where all values are positive",
        "no public report known",
        "whole_blocks.zero_point8.None.codes",
        ("codes_by_hand", "errors_bounded"),
        (Change(_QUANTIZE, "np.maximum(block.max(axis=1), 0)", "block.max(axis=1)"),),
    ),
    Bug(
        "zero_not_subtracted",
        "the codes are multiplied by the step as they are",
        "no public report known",
        "whole_blocks.zero_point8.None.values",
        ("pytorch_codes", "errors_bounded"),
        (
            Change(
                "numerics.zero_point:put_values",
                "block -= quantized.zeros[which, np.newaxis].astype(out.dtype)",
                "pass",
            ),
        ),
    ),
)

RECORD = BugsOnly(zero_point, "quantization has no derivative", BUGS)
