"""`prompts`: a real mistake with prompts of several lengths."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.decoding import prompts

BUGS = (
    Bug(
        "positions_count_the_padding",
        "the positions of a shorter prompt begin at its padding, not at its own start",
        "transformers#18104",
        "padded.logits",
        ("padding", "decoding"),
        (
            Change(
                "decoding.prompts:Prompts.options",
                "columns - self.starts[:, np.newaxis]",
                "columns - 0 * self.starts[:, np.newaxis]",
            ),
        ),
    ),
)

RECORD = BugsOnly(prompts, "it pads token ids, which have no gradient", BUGS)
