"""`sinusoidal_positions`: a real mistake in the table."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.ops import sinusoidal_positions

BUGS = (
    Bug(
        "sines_before_cosines",
        "all sines come before all cosines, which is not the paper's order, so weights do not carry over",
        "tensor2tensor#1925",
        "pos_emb",
        ("forward", "gradients"),
        (
            Change("ops.sinusoidal_positions:table", "[:, 0::2]", "[:, : emb_dim // 2]"),
            Change("ops.sinusoidal_positions:table", "[:, 1::2]", "[:, emb_dim // 2 :]"),
        ),
    ),
)

RECORD = BugsOnly(sinusoidal_positions, "the table depends on no input and no parameter", BUGS)
