"""`reward`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.objectives import reward


def draw(source: Source) -> Call:
    """Draw pairs of scores, with margins or without."""
    N = source.size(6)
    margin = source.rng.random(N) if source.yes() else None
    arguments = {"chosen": source.normal(N), "rejected": source.normal(N), "margin": margin}
    return Call(arguments, {"normalizer": 7.5} if source.yes() else {})


def complex_step(source: Source) -> Mapping[str, Call]:
    """Pairs with and without margins."""
    pairs = {"chosen": source.normal(5), "rejected": source.normal(5)}
    return {"": Call({**pairs, "margin": None}), "margins": Call({**pairs, "margin": source.rng.random(5)})}


SPECIAL = {
    "ties": Call({"chosen": np.ones(2), "rejected": np.ones(2), "margin": None}),
    "scores of 1000": Call({"chosen": np.array([1e3, -1e3]), "rejected": np.array([-1e3, 1e3]), "margin": None}),
    "one pair": Call({"chosen": np.array([0.5]), "rejected": np.array([1.5]), "margin": np.array([0.25])}),
}

BUGS = (
    Bug(
        "worse_answer_preferred",
        "chosen and rejected are exchanged",
        "no public report known",
        "operations.reward.output",
        ("operations", "objectives"),
        (Change("objectives.reward:forward", "z = chosen - rejected if", "z = rejected - chosen if"),),
    ),
    Bug(
        "margin_of_the_wrong_sign",
        "the margin makes the pair easier",
        "no public report known",
        "operations.reward.output",
        ("operations", "objectives"),
        (Change("objectives.reward:forward", "rejected - np.asarray", "rejected + np.asarray"),),
    ),
    Bug(
        "both_answers_pushed_the_same_way",
        "the rejected answer's gradient has the sign of the chosen one's",
        "no public report known",
        "operations.reward.d_rejected",
        ("operations", "operations_complex_step"),
        (Change("objectives.reward:backward", "Gradients(d_z, -d_z)", "Gradients(d_z, d_z)"),),
    ),
    Bug(
        "reward_of_parts_by_their_own_pairs",
        "a micro-batch divides by its own pairs, not by those of the whole batch",
        "transformers#35203",
        "operations.reward.output",
        ("operations", "parts_of_batches"),
        (Change("objectives.reward:forward", "(len(z) if normalizer is None else normalizer) or 1", "len(z)"),),
    ),
)

RECORD = Record(reward, draw, SPECIAL, complex_step, BUGS)
