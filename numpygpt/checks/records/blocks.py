"""`blocks` of `numpygpt.numerics`: real mistakes in what the schemes of quantization share."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.numerics import blocks

BUGS = (
    Bug(
        "largest_without_absolute",
        "the largest value takes the place of the largest absolute one, so that what is more negative is clipped",
        "no public report known",
        "whole_blocks.int8.None.codes",
        ("errors_bounded", "bitsandbytes_codes"),
        (
            Change(
                "numerics.blocks:largest_of_blocks",
                "np.maximum(block.max(axis=1), -block.min(axis=1))",
                "block.max(axis=1)",
            ),
        ),
    ),
    Bug(
        "nibbles_packed_in_the_other_order",
        "the first of two codes is put into the low bits, and read from the high ones",
        "openvino#32144",
        "whole_blocks.int4.None.codes",
        ("errors_bounded", "bitsandbytes_codes"),
        (
            Change(
                "numerics.blocks:packed",
                "(even[::2] << NIBBLE) | even[1::2]",
                "(even[1::2] << NIBBLE) | even[::2]",
            ),
        ),
    ),
    Bug(
        "nibbles_read_in_the_other_order",
        "the first of two codes is read from the low bits",
        "openvino#32144",
        "whole_blocks.int4.None.values",
        ("errors_bounded", "bitsandbytes_codes"),
        (
            Change(
                "numerics.blocks:pairs",
                "levels[:, np.newaxis], levels",
                "levels, levels[:, np.newaxis]",
            ),
        ),
    ),
    Bug(
        "constant_of_the_next_block_at_the_end",
        "where a block begins before the first value, its rest gets the constant of the next block",
        "no public report known",
        "whole_blocks.dynamic8.None.y",
        ("blocks_alone", "packed_in_blocks"),
        (Change("numerics.blocks:by_block", "start // block_size, min(", "-(-start // block_size), min("),),
    ),
)

RECORD = BugsOnly(blocks, "it cuts arrays into blocks and packs codes", BUGS)
