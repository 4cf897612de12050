"""`clipping`: a real mistake in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.training import clipping

BUGS = (
    Bug(
        "clip_per_tensor",
        "every tensor is clipped by a norm of its own",
        "entrenar#311, transformers#581",
        "clipped.tok_emb.weight",
        ("optimizer", "closed_form"),
        (
            Change(
                "training.clipping:clip_grad_norm",
                "over_rows(lambda block: np.multiply(block, factor, out=block), gradient)",
                "gradient *= min(1, max_norm / (math.sqrt(_sum_of_squares(gradient)) + 1e-6))",
            ),
        ),
    ),
)

RECORD = BugsOnly(clipping, "it scales gradients and has none of its own", BUGS)
