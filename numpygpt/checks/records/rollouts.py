"""`rollouts`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.tuning import rollouts

_VALUES = "tuning.rollouts:with_values"

BUGS = (
    Bug(
        "reward_at_the_end_of_the_row",
        "the reward of an answer is given to the last position of its row, which may be padding",
        "OpenRLHF#294",
        "valued.advantages",
        ("rewarded_by_hand",),
        (Change(_VALUES, "rewards[np.arange(len(rewards)), last] +=", "rewards[:, -1] +="),),
    ),
    Bug(
        "penalty_pays_for_leaving_the_reference",
        "the divergence from the reference is a reward, and not a penalty",
        "no public report known",
        "valued.advantages",
        ("rewarded_by_hand",),
        (Change(_VALUES, "rewards = -beta *", "rewards = beta *"),),
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
        "drawn.targets",
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
