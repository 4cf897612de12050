"""`lion`: real mistakes in Lion."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.training import lion

BUGS = (
    Bug(
        "lion_betas_exchanged",
        "the step takes beta2, and the memory beta1",
        "Optimisers.jl#129",
        "lion.step1.exp_avg.tok_emb.weight",
        ("optimizers", "by_hand"),
        (
            Change(
                "training.lion:Lion.update",
                "beta1, beta2 = self.betas",
                "beta2, beta1 = self.betas",
            ),
        ),
    ),
    Bug(
        "lion_sign_of_the_memory",
        "the step follows the sign of the momentum after its update, into which beta1 does not go",
        "no public report known",
        "lion.step2.tok_emb.weight",
        ("optimizers", "by_hand"),
        (
            Change(
                "training.lion:Lion.update",
                "p -= rates.lr * np.sign(c)",
                "p -= rates.lr * np.sign(beta2 * m + (1 - beta2) * g)",
            ),
        ),
    ),
)

RECORD = BugsOnly(lion, "an optimizer has no gradient", BUGS)
