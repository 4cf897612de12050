"""`sgd`: real mistakes in SGD."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.training import sgd

BUGS = (
    Bug(
        "nesterov_without_look_ahead",
        "Nesterov's momentum steps by the momentum alone, as the classic one does",
        "SGDLibrary#8",
        "sgd_nesterov.step1.tok_emb.weight",
        ("optimizers", "by_hand"),
        (
            Change(
                "training.sgd:SGD.update",
                "g + self.momentum * b if self.nesterov else b",
                "b",
            ),
        ),
    ),
    Bug(
        "first_momentum_damped",
        "the dampening makes the first momentum smaller, too",
        "mlx#440",
        "sgd_damped.step1.momentum_buffer.tok_emb.weight",
        ("optimizers", "by_hand"),
        (
            Change(
                "training.sgd:SGD.update",
                "b[...] = g",
                "b[...] = (1 - self.dampening) * g",
            ),
        ),
    ),
)

RECORD = BugsOnly(sgd, "an optimizer has no gradient", BUGS)
