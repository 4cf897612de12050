"""`clipped_policy`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.objectives import clipped_policy
from numpygpt.ops import weighted_mean


def draw(source: Source) -> Call:
    """Draw log-probabilities that have moved since the tokens were drawn, some of them beyond the clip."""
    shape = source.size(4), source.size(5)
    log_probs = -5 * source.rng.random(shape)
    old = log_probs + source.choose.one_of([0.0, 0.1, 0.5]) * source.rng.standard_normal(shape)
    arguments = {"log_probs": log_probs, "old_log_probs": old, "advantages": source.normal(*shape)}
    clips = {"clip": source.choose.one_of([0.2, 0.05]), "clip_high": source.choose.one_of([None, 0.3])}
    return Call({**arguments, "weights": source.weights(shape)}, clips | source.mean())


def complex_step(source: Source) -> Mapping[str, Call]:
    """Tokens on every side of the clip, by each way of the mean."""
    weights = source.rng.random((4, 5)) + 0.1
    weights[1], weights[2, 3:] = 0, 0
    log_probs = -5 * source.rng.random((4, 5))
    arguments = {
        "log_probs": log_probs,
        "old_log_probs": log_probs + source.rng.choice([-0.5, -0.1, 0.1, 0.5], (4, 5)),
        "advantages": source.rng.choice([-1.0, 1.0], (4, 5)) * (0.5 + source.rng.random((4, 5))),
        "weights": weights,
    }
    return {way: Call(arguments, {"over": way, "clip_high": 0.3}) for way in weighted_mean.WAYS}


def _answer(
    log_probs: list[float], old: list[float], advantages: list[float], weights: list[float]
) -> dict[str, np.ndarray]:
    """One answer."""
    named = {"log_probs": log_probs, "old_log_probs": old, "advantages": advantages, "weights": weights}
    return {name: np.array([numbers]) for name, numbers in named.items()}


SPECIAL = {
    "no token counts": Call(_answer([-1.0, -2.0], [-1.5, -1.0], [1.0, -1.0], [0.0, 0.0])),
    "one token": Call(_answer([-1.0], [-1.05], [2.0], [1.0])),
    "as it was drawn": Call(_answer([-1.0, -2.0, -0.5], [-1.0, -2.0, -0.5], [2.0, -1.0, 0.0], [1.0, 1.0, 1.0])),
    "a ratio of infinity without an advantage": Call(_answer([-1.0, -2.0], [-1e4, -2.0], [0.0, 1.0], [1.0, 1.0])),
    "tokens that are excluded now, and always": Call(
        _answer([-np.inf, -np.inf, -1.0], [-1.0, -np.inf, -1.0], [1.0, -1.0, 1.0], [1.0, 1.0, 1.0])
    ),
    "what does not count is not a number": Call(_answer([-1.0, np.nan], [-1.1, -np.inf], [1.0, np.nan], [1.0, 0.0])),
}

BUGS = (
    Bug(
        "ppo_clip_alone",
        "the clipped term is taken without the minimum: a bad token that has become likely is not pushed down",
        "no public report known",
        "operations.clipped_policy.output",
        ("operations", "objectives", "objectives_of_trl"),
        (
            Change(
                "objectives.clipped_policy:forward", "bounded_gain.real < gain.real", "bounded_gain.real != gain.real"
            ),
        ),
    ),
    Bug(
        "ppo_maximum",
        "the maximum is taken for the minimum",
        "no public report known",
        "operations.clipped_policy.output",
        ("operations", "objectives", "objectives_of_trl"),
        (
            Change(
                "objectives.clipped_policy:forward", "bounded_gain.real < gain.real", "bounded_gain.real > gain.real"
            ),
        ),
    ),
    Bug(
        "ppo_gradient_through_the_clip",
        "the gradient goes through where the clip holds",
        "no public report known",
        "operations.clipped_policy.d_log_probs",
        ("operations", "operations_complex_step"),
        (
            Change(
                "objectives.clipped_policy:backward",
                "np.where(saved.is_clipped, 0, -saved.gain * d_y)",
                "-saved.gain * d_y",
            ),
        ),
    ),
    Bug(
        "ppo_low_clip_for_high",
        "the upper bound ignores that it may be another",
        "no public report known",
        "operations.clipped_policy.output",
        ("operations", "objectives_of_trl"),
        (Change("objectives.clipped_policy:forward", "clip if clip_high is None else clip_high", "clip"),),
    ),
    Bug(
        "ppo_infinite_ratio_is_nan",
        "an infinite ratio times an advantage of 0",
        "OpenRLHF#1335",
        "none",
        ("operations_at_extremes", "objectives"),
        (Change("objectives.clipped_policy:forward", "np.where(A == 0, 0, ratio) * A", "ratio * A"),),
    ),
    Bug(
        "ppo_of_excluded_tokens_is_nan",
        "a token that is excluded now and was before has the log-ratio infinity minus infinity",
        "OpenRLHF#1335",
        "none",
        ("operations_at_extremes", "objectives"),
        (
            Change(
                "objectives.clipped_policy:_ratio",
                "excluded = counts & (log_probs.real == -np.inf)",
                "excluded = counts & False",
            ),
        ),
    ),
)

RECORD = Record(clipped_policy, draw, SPECIAL, complex_step, BUGS)
