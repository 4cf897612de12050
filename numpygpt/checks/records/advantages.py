"""`advantages`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.training import advantages

BUGS = (
    Bug(
        "gae_of_the_next_answers_value",
        "the value after the last token is that of the padding",
        "no public report known",
        "advantages.generalized",
        ("advantages", "advantages_relations"),
        (
            Change(
                "training.advantages:_of_counted",
                "np.where(counts, np.asarray(array, np.float64), 0)",
                "np.asarray(array, np.float64)",
            ),
            Change("training.advantages:generalized", "np.where(here, v[:, t], next_value)", "v[:, t]"),
        ),
    ),
    Bug(
        "gae_padding_ends_the_sum",
        "a token that does not count, between two that do, ends the sum of what is to come",
        "no public report known",
        "advantages.generalized",
        ("advantages", "advantages_relations"),
        (
            Change(
                "training.advantages:generalized",
                "np.where(here, advantages[:, t], next_advantage)",
                "advantages[:, t]",
            ),
        ),
    ),
    Bug(
        "gae_without_gamma",
        "what is to come is discounted by lambda alone",
        "no public report known",
        "advantages.generalized",
        ("advantages", "advantages_relations"),
        (Change("training.advantages:generalized", "gamma * lam * next_advantage", "lam * next_advantage"),),
    ),
    Bug(
        "returns_without_the_value",
        "the returns are the advantages",
        "no public report known",
        "advantages.returns",
        ("advantages", "advantages_relations"),
        (
            Change(
                "training.advantages:generalized",
                "Advantages(advantages, advantages + v)",
                "Advantages(advantages, advantages)",
            ),
        ),
    ),
    Bug(
        "whitening_with_padding",
        "the mean and the variance are those of all positions",
        "no public report known",
        "advantages.whitened",
        ("advantages", "advantages_relations"),
        (
            Change(
                "training.advantages:whitened",
                "chosen = np.asarray(x, np.float64)[counts]",
                "chosen = np.asarray(x, np.float64)[counts | True]",
            ),
            Change("training.advantages:whitened", "y[counts] = (chosen - mean)", "y[counts | True] = (chosen - mean)"),
        ),
    ),
    Bug(
        "group_over_the_batch",
        "the mean is that of the batch, not of the answers to one prompt",
        "no public report known",
        "advantages.of_groups",
        ("advantages", "advantages_relations"),
        (Change("training.advantages:of_groups", "each.mean(axis=1, keepdims=True)", "each.mean()"),),
    ),
    Bug(
        "group_deviation_of_the_population",
        "the standard deviation divides by n",
        "no public report known",
        "advantages.of_groups",
        ("advantages", "advantages_relations"),
        (Change("training.advantages:of_groups", "ddof=1", "ddof=0"),),
    ),
    Bug(
        "baseline_with_the_answer_itself",
        "the baseline of an answer is the mean of all, itself among them",
        "no public report known",
        "advantages.leave_one_out",
        ("advantages", "advantages_relations"),
        (
            Change(
                "training.advantages:leave_one_out",
                "(each.sum(axis=1, keepdims=True) - each) / (group - 1)",
                "each.mean(axis=1, keepdims=True)",
            ),
        ),
    ),
    Bug(
        "score_on_the_padding",
        "the score is the reward of the last position, also where that is padding",
        "no public report known",
        "advantages.rewards",
        ("advantages", "advantages_relations"),
        (Change("training.advantages:penalized_rewards", "np.argmax(counts[:, ::-1], axis=1)", "0"),),
    ),
    Bug(
        "reward_for_the_distance",
        "the policy is paid for its distance from the reference",
        "no public report known",
        "advantages.rewards",
        ("advantages", "advantages_relations"),
        (Change("training.advantages:penalized_rewards", "rewards = -beta *", "rewards = beta *"),),
    ),
)

RECORD = BugsOnly(
    advantages, "what it computes is a constant of a step, and nothing is differentiated through it", BUGS
)
