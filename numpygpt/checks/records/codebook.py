"""`codebook` of `numpygpt.numerics`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.numerics import codebook

_QUANTIZE = "numerics.codebook:quantize"
_CONSTANTS = "numerics.codebook:constants"
_FRACTIONS = "block * (1 / a) if block.shape[1] == size else block / a"

BUGS = (
    Bug(
        "nested_constants_ignored",
        "the constants of double quantization are not dequantized: each block has the mean",
        "bitsandbytes#1549",
        "whole_blocks.nf4.3.values",
        ("errors_bounded", "double_codes"),
        (Change(_CONSTANTS, "put_values(rest, first, absmax)", "absmax[...] = 0"),),
    ),
    Bug(
        "mean_not_added_back",
        "the mean of the constants is taken off, and not added again",
        "no public report known",
        "whole_blocks.nf4.3.values",
        ("errors_bounded", "double_codes"),
        (Change(_CONSTANTS, "absmax += mean  # (4)", "pass"),),
    ),
    Bug(
        "constants_from_the_first_block",
        "rows are dequantized with the constants of the first ones",
        "Model-Optimizer#2421",
        "whole_blocks.nf4.3.y",
        ("blocks_alone", "packed_in_blocks"),
        (Change(_CONSTANTS, "put_values(rest, first, absmax)", "put_values(rest, 0, absmax)"),),
    ),
    Bug(
        "divided_in_whole_blocks",
        "values are divided by the largest, not multiplied by 1 / largest: values beside a middle get other codes",
        "no public report known",
        "beside_middles.dynamic8.None.codes",
        ("bitsandbytes_codes",),
        (Change(_QUANTIZE, _FRACTIONS, "block / a"),),
    ),
    Bug(
        "multiplied_in_the_tail",
        "the tail is multiplied by 1 / largest, too",
        "no public report known",
        "beside_middles.nf4.None.codes",
        ("bitsandbytes_codes",),
        (Change(_QUANTIZE, _FRACTIONS, "block * (1 / a)"),),
    ),
    Bug(
        "ties_go_up",
        "a value in the middle of two levels gets the upper one",
        "no public report known",
        "whole_blocks.quantile4.None.codes",
        ("bitsandbytes_codes", "nearest_level"),
        (Change("numerics.codebook:nearest", "fractions > middle", "fractions >= middle"),),
    ),
    Bug(
        "codes_in_the_order_of_levels",
        "a code counts the levels by their size, but those of fp4 are in another order",
        "no public report known",
        "whole_blocks.fp4.None.codes",
        ("bitsandbytes_codes", "errors_bounded"),
        (Change("numerics.codebook:nearest", "order.astype(np.uint8)[below]", "below"),),
    ),
    Bug(
        "level_below_not_nearest",
        "a value gets the level below it, not the nearest one",
        "no public report known",
        "whole_blocks.dynamic8.None.codes",
        ("bitsandbytes_codes", "errors_bounded"),
        (
            Change(
                "numerics.codebook:nearest",
                "(levels[order][:-1] + levels[order][1:]) / np.float32(2)",
                "levels[order][1:] - np.float32(1e-6)",
            ),
        ),
    ),
)

RECORD = BugsOnly(codebook, "quantization has no derivative", BUGS)
