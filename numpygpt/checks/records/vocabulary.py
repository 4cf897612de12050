"""`vocabulary`: real mistakes in a larger vocabulary."""

from numpygpt.adapt import vocabulary
from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly

BUGS = (
    Bug(
        "resized_head_not_tied",
        "the head of a tied model gets an array of its own",
        "transformers#1730",
        "resized_tied.tied",
        ("old_logits_stay", "new_rows_are_means"),
        (
            Change(
                "adapt.vocabulary:resize_embeddings",
                "p.Linear(larger.weight if",
                "p.Linear(larger.weight.copy() if",
            ),
        ),
    ),
    Bug(
        "resized_head_drawn_anew",
        "all rows of the head are drawn anew",
        "transformers#35141",
        "resized.out_head.weight",
        ("old_logits_stay", "new_rows_are_means"),
        (
            Change(
                "adapt.vocabulary:resize_embeddings",
                "_with_rows(out_head, size, new_rows, generator))",
                "generator.uniform((size, larger.weight.shape[1]), -0.3, 0.3))",
            ),
        ),
    ),
)

RECORD = BugsOnly(vocabulary, "it makes a model of a model", BUGS)
