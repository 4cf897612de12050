"""`policies`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.tuning import policies

BUGS = (
    Bug(
        "temperature_lost_on_the_way_back",
        "the gradient of the logits lacks the division by the temperature",
        "no public report known",
        "tuned.reinforce.d_tok_emb.weight",
        ("goals_in_pytorch", "goals_in_parts"),
        (
            Change(
                "tuning.policies:OfPolicy.backward",
                "saved.token_log_probs).logits / saved.temperature",
                "saved.token_log_probs).logits",
            ),
        ),
    ),
    Bug(
        "policy_scored_at_temperature_1",
        "answers are drawn at one temperature, and learned from at another",
        "trl#1051",
        "tuned.reinforce.loss",
        ("goals_in_pytorch", "goals_in_parts"),
        (Change("tuning.policies:OfPolicy.forward", "logits / self.temperature", "logits"),),
    ),
    Bug(
        "share_of_the_critic_forgotten",
        "the critic's gradient is not multiplied by its share of the loss",
        "no public report known",
        "tuned.ppo.d_critic.tok_emb.weight",
        ("goals_in_pytorch", "goals_in_parts"),
        (
            Change(
                "tuning.policies:Ppo.loss_and_grads",
                "loss_scale=loss_scale * self.value_share",
                "loss_scale=loss_scale",
            ),
        ),
    ),
    Bug(
        "answers_weighted_by_tokens",
        "micro-batches are weighted by their tokens, and the mean is over answers",
        "transformers#34191",
        "none",
        ("goals_in_parts",),
        (Change("tuning.policies:OfPolicy.weight", "over=self.over", 'over="tokens"'),),
    ),
)

RECORD = BugsOnly(policies, "it puts models and objectives together", BUGS)
