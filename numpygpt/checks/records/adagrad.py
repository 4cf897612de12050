"""`adagrad`: real mistakes in Adagrad."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.training import adagrad

BUGS = (
    Bug(
        "adagrad_adds_up_the_gradient",
        "the sum is of the gradients, and not of their squares",
        "no public report known",
        "adagrad.step1.sum.tok_emb.weight",
        ("optimizers", "by_hand"),
        (
            Change(
                "training.adagrad:Adagrad.update",
                "s += g * g",
                "s += np.abs(g)",
            ),
        ),
    ),
)

RECORD = BugsOnly(adagrad, "an optimizer has no gradient", BUGS)
