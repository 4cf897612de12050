"""`quantile` of `numpygpt.numerics`: a real mistake in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.numerics import quantile

BUGS = (
    Bug(
        "levels_at_the_ends_of_shares",
        "a level is the upper end of its share of the values, not its middle",
        "no public report known",
        "whole_blocks.quantile8.None.codes",
        ("equally_frequent", "codes_by_hand"),
        (Change("numerics.quantile:levels", "(ends[:-1] + ends[1:]) / np.float32(2)", "ends[1:]"),),
    ),
)

RECORD = BugsOnly(quantile, "quantization has no derivative", BUGS)
