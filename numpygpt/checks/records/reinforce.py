"""`reinforce`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.objectives import reinforce
from numpygpt.ops import weighted_mean


def draw(source: Source) -> Call:
    """Draw log-probabilities and advantages."""
    shape = source.size(4), source.size(5)
    arguments = {"log_probs": -5 * source.rng.random(shape), "advantages": source.normal(*shape)}
    return Call({**arguments, "weights": source.weights(shape)}, source.mean())


def complex_step(source: Source) -> Mapping[str, Call]:
    """Each way of the mean, with a sequence that does not count."""
    weights = source.rng.random((3, 5))
    weights[1], weights[2, 3:] = 0, 0
    arguments = {"log_probs": -5 * source.rng.random((3, 5)), "advantages": source.normal(3, 5), "weights": weights}
    return {way: Call(arguments, {"over": way}) for way in weighted_mean.WAYS}


def _answer(log_probs: list[float], advantages: list[float], weights: list[float]) -> dict[str, np.ndarray]:
    """One answer."""
    named = {"log_probs": log_probs, "advantages": advantages, "weights": weights}
    return {name: np.array([numbers]) for name, numbers in named.items()}


SPECIAL = {
    "no token counts": Call(_answer([-1.0, -2.0], [1.0, -1.0], [0.0, 0.0])),
    "one token": Call(_answer([-1.0], [2.0], [1.0])),
    "all advantages are 0": Call(_answer([-1.0, -np.inf], [0.0, 0.0], [1.0, 1.0])),
    "a token that does not count is excluded": Call(_answer([-1.0, -np.inf], [1.0, np.nan], [1.0, 0.0])),
}

BUGS = (
    Bug(
        "reinforce_downhill",
        "the loss has the sign of the reward, so that bad answers become likely",
        "no public report known",
        "operations.reinforce.output",
        ("operations", "operations_complex_step", "objectives"),
        (Change("objectives.reinforce:forward", "y = -A *", "y = A *"),),
    ),
    Bug(
        "reinforce_of_excluded_tokens_is_nan",
        "an excluded token without an advantage is 0 times infinity",
        "OpenRLHF#1335",
        "none",
        ("operations_at_extremes", "objectives"),
        (Change("objectives.reinforce:forward", "np.where(A == 0, 0, log_probs)", "log_probs"),),
    ),
    Bug(
        "reinforce_without_the_baseline",
        "only good tokens are pushed: the advantages below 0 are left out",
        "no public report known",
        "operations.reinforce.d_log_probs",
        ("operations", "operations_complex_step"),
        (
            Change(
                "objectives.reinforce:backward",
                "-saved.advantages",
                "-np.where(saved.advantages.real < 0, 0, saved.advantages)",
            ),
        ),
    ),
)

RECORD = Record(reinforce, draw, SPECIAL, complex_step, BUGS)
