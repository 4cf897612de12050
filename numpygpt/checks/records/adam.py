"""`adam`: real mistakes in Adam."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.training import adam

BUGS = (
    Bug(
        "adam_decay_decoupled",
        "the decay is AdamW's, where L2 in the gradient is meant",
        "no public report known",
        "adam.step1.exp_avg.tok_emb.weight",
        ("optimizers", "by_hand"),
        (
            Change(
                "training.adam:Adam.update",
                "g = g + rates.weight_decay * p",
                "p *= 1 - rates.lr * rates.weight_decay",
            ),
        ),
    ),
)

RECORD = BugsOnly(adam, "an optimizer has no gradient", BUGS)
