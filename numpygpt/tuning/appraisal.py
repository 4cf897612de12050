"""What an evaluation tells of a model that learns from pairs, beside its loss: how it judges pairs it has not seen.

    val_accuracy   the share of pairs whose chosen answer is ahead of the rejected one; equal ones count half
    val_margin     by how much it is ahead, in the mean

They are of a reward model's scores, or of the rewards β log(π / ρ) of DPO; without a reference, of log-probabilities.
"""

from typing import Any

from numpygpt.data.batching import Pairs
from numpygpt.evaluation.pairs import score_preferences, score_rewards
from numpygpt.evaluation.scores import LogitsOf
from numpygpt.tuning.options import FinetuneOptions


def appraisal(
    options: FinetuneOptions, validation: Any, logits_of: LogitsOf, reference: LogitsOf | None
) -> dict[str, float]:
    """The two figures of the pairs that an evaluation reads; nothing for an objective that does not learn from pairs.

    validation             the dataset to validate with
    logits_of, reference   compute the logits of the model and of the reference; None: there is none
    """
    if options.objective not in ("reward", "dpo"):
        return {}
    pairs, size = Pairs(validation.pairs[: options.eval_batches * options.batch_size]), options.batch_size
    if options.objective == "reward":
        score = score_rewards(logits_of, pairs, batch_size=size)
    else:
        beta = options.settings["beta"]
        found = score_preferences(logits_of, pairs, reference=reference, beta=beta, batch_size=size)
        score = found.rewards or found.log_probs
    return {"val_accuracy": score.accuracy, "val_margin": score.margin}
