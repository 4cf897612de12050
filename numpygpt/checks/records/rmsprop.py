"""`rmsprop`: real mistakes in RMSprop."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.training import rmsprop

BUGS = (
    Bug(
        "rmsprop_eps_inside_the_root",
        "eps is added before the root is taken, as in TensorFlow",
        "pytorch#23796",
        "rmsprop.step1.tok_emb.weight",
        ("optimizers", "by_hand"),
        (
            Change(
                "training.rmsprop:RMSprop.update",
                "(np.sqrt(w) + self.eps)",
                "np.sqrt(w + self.eps)",
            ),
        ),
    ),
    Bug(
        "centered_by_the_mean_itself",
        "the centered form subtracts the mean, and not its square",
        "no public report known",
        "rmsprop_centered.step1.momentum_buffer.tok_emb.weight",
        ("optimizers", "by_hand"),
        (
            Change(
                "training.rmsprop:RMSprop.update",
                "v - a * a",
                "v - a",
            ),
        ),
    ),
)

RECORD = BugsOnly(rmsprop, "an optimizer has no gradient", BUGS)
