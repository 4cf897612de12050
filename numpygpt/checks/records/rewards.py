"""`rewards`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.tuning import rewards

BUGS = (
    Bug(
        "score_of_padding",
        "the score of a text is read at the last position of its row, which may be padding",
        "trl#1473",
        "tuned.rewards.loss",
        ("goals_in_pytorch", "goals_in_parts"),
        (
            Change(
                "tuning.rewards:Rewards.forward",
                "logits[np.arange(len(logits)), lengths - 1, 0]",
                "logits[:, -1, 0]",
            ),
        ),
    ),
    Bug(
        "gradient_of_scores_beside_them",
        "the gradient of a score goes to the position after it",
        "no public report known",
        "tuned.rewards.d_tok_emb.weight",
        ("goals_in_pytorch", "goals_in_parts"),
        (Change("tuning.rewards:Rewards.backward", "saved.lengths - 1, 0]", "saved.lengths - 2, 0]"),),
    ),
)

RECORD = BugsOnly(rewards, "it puts a model and an objective together", BUGS)
