"""`initialization`: a real mistake in how a model's arrays are made."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.model import initialization

BUGS = (
    Bug(
        "tie_by_copy",
        "the head starts as a copy of the embedding, so a tie in name only",
        "rasbt/LLMs-from-scratch#822",
        "loaded.out_head.weight",
        ("weights", "forward"),
        (
            Change(
                "model.initialization:allocate",
                "Linear(tok_emb if config.tie_weights else empty(V, D))",
                "Linear(tok_emb.copy() if config.tie_weights else empty(V, D))",
            ),
        ),
    ),
)

RECORD = BugsOnly(initialization, "it makes arrays and draws their first values", BUGS)
