"""`rollouts`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.tuning import rollouts

_VALUES = "tuning.rollouts:_with_values"

BUGS = (
    Bug(
        "values_of_another_text",
        "the critic reads the targets, which are the tokens one place later",
        "no public report known",
        "valued.advantages",
        ("rewarded_by_hand",),
        (Change(_VALUES, "Plain(drawn.inputs)", "Plain(np.maximum(drawn.targets, 0))"),),
    ),
    Bug(
        "penalty_forgotten",
        "the answers' rewards count, and not how far the policy is from the reference",
        "no public report known",
        "valued.advantages",
        ("rewarded_by_hand",),
        (Change(_VALUES, "weights, beta=beta)", "weights, beta=0.0)"),),
    ),
    Bug(
        "reference_at_temperature_1",
        "the reference's log-probabilities are those of another softmax than the answers were drawn from",
        "no public report known",
        "drawn.reference_log_probs",
        ("drawn_as_scored",),
        (Change("tuning.rollouts:Drawing.log_probs_of", "/ self.temperature", ""),),
    ),
    Bug(
        "prompt_learned_with_the_answer",
        "the prompt's tokens are targets, too",
        "OpenRLHF#294",
        "drawn.inputs",
        ("rows_by_hand", "drawn_as_scored"),
        (
            Change(
                "tuning.rollouts:rows_of",
                "np.arange(len(token_ids)) >= len(prompt)",
                "np.arange(len(token_ids)) >= 0",
            ),
        ),
    ),
    Bug(
        "best_answer_of_the_batch",
        "of all answers the best is taken for the first prompt, and not of its own",
        "no public report known",
        "best.rewards",
        ("best_by_hand",),
        (Change("tuning.rollouts:best_of", "+ drawing.group * np.arange(len(prompts))", ""),),
    ),
    Bug(
        "advantage_of_another_answer",
        "answers and rewards are in another order: each prompt's first answers come first",
        "no public report known",
        "grouped.advantages",
        ("groups_by_hand",),
        (
            Change(
                "tuning.rollouts:with_group_advantages",
                "each[:, np.newaxis]",
                "each.reshape(-1, group).T.reshape(-1, 1)",
            ),
        ),
    ),
)

RECORD = BugsOnly(rollouts, "it draws answers and judges them", BUGS)
