"""`recomputed_block`: the calls of `transformer_block`, and real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Record
from numpygpt.checks.records import transformer_block
from numpygpt.layers import recomputed_block

BUGS = (
    Bug(
        "recomputed_without_dropout",
        "the forward that is computed again drops other elements, here none",
        "guided-diffusion#167",
        "recomputed.d_trf_blocks.1.ff.layers.2",
        ("recomputation", "complex_step"),
        (
            Change(
                "layers.recomputed_block:backward",
                "**saved.options",
                '**{**saved.options, "masks": transformer_block.NO_MASKS}',
            ),
        ),
    ),
)

RECORD = Record(
    recomputed_block, transformer_block.draw, transformer_block.SPECIAL, transformer_block.complex_step, BUGS
)
