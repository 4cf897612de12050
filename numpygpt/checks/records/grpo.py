"""`grpo`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.objectives import grpo
from numpygpt.ops import kl_estimate, weighted_mean


def draw(source: Source) -> Call:
    """Draw log-probabilities that have moved since the tokens were drawn, and others of a reference."""
    shape = source.size(4), source.size(5)
    log_probs = -5 * source.rng.random(shape)
    near = {
        name: log_probs + 0.3 * source.rng.standard_normal(shape) for name in ("old_log_probs", "reference_log_probs")
    }
    arguments = {"log_probs": log_probs, **near, "advantages": source.normal(*shape), "weights": source.weights(shape)}
    options = {"beta": source.choose.one_of([0.0, 0.04, 1.0]), "kind": source.choose.one_of(kl_estimate.KINDS)}
    return Call(arguments, options | source.mean())


def complex_step(source: Source) -> Mapping[str, Call]:
    """Tokens on every side of the clip, by each way of the mean."""
    weights = source.rng.random((4, 5)) + 0.1
    weights[1], weights[2, 3:] = 0, 0
    log_probs = -5 * source.rng.random((4, 5))
    arguments = {
        "log_probs": log_probs,
        "old_log_probs": log_probs + source.rng.choice([-0.5, -0.1, 0.1, 0.5], (4, 5)),
        "reference_log_probs": log_probs + source.rng.standard_normal((4, 5)),
        "advantages": source.rng.standard_normal((4, 5)),
        "weights": weights,
    }
    return {way: Call(arguments, {"over": way, "beta": 0.5}) for way in weighted_mean.WAYS}


def _answer(*rows: list[float]) -> dict[str, np.ndarray]:
    """One answer."""
    names = ("log_probs", "old_log_probs", "reference_log_probs", "advantages", "weights")
    return {name: np.array([row]) for name, row in zip(names, rows, strict=True)}


SPECIAL = {
    "no token counts": Call(_answer([-1.0, -2.0], [-1.5, -1.0], [-1.0, -1.0], [1.0, -1.0], [0.0, 0.0])),
    "one token": Call(_answer([-1.0], [-1.05], [-1.5], [2.0], [1.0])),
    "all rewards are equal": Call(_answer([-1.0, -2.0], [-1.1, -1.9], [-1.5, -1.0], [0.0, 0.0], [1.0, 1.0])),
    "a token that is excluded by all": Call(
        _answer([-1.0, -np.inf], [-1.0, -np.inf], [-1.5, -np.inf], [1.0, -1.0], [1.0, 1.0])
    ),
    "a reference that excludes a token, without beta": Call(
        _answer([-1.0, -2.0], [-1.1, -1.9], [-1.5, -np.inf], [1.0, -1.0], [1.0, 1.0]), {"beta": 0.0, "kind": "k2"}
    ),
    "a policy that nearly excludes a token, without beta": Call(
        _answer([-1.0, -1e3], [-1.1, -1e3], [-1.5, -1.0], [1.0, -1.0], [1.0, 1.0]), {"beta": 0.0}
    ),
    "what does not count is not a number": Call(
        _answer([-1.0, np.nan], [-1.1, -np.inf], [-1.5, np.nan], [1.0, np.nan], [1.0, 0.0])
    ),
}

BUGS = (
    Bug(
        "grpo_paid_for_its_distance",
        "the divergence has the sign of a reward",
        "no public report known",
        "operations.grpo.output",
        ("operations", "operations_complex_step", "objectives_of_trl"),
        (
            Change(
                "objectives.grpo:forward", "policy + log_probs.dtype.type(beta)", "policy - log_probs.dtype.type(beta)"
            ),
        ),
    ),
    Bug(
        "grpo_divergence_without_its_gradient",
        "the divergence is in the loss, and its gradient lacks beta",
        "no public report known",
        "operations.grpo.d_log_probs",
        ("operations", "operations_complex_step"),
        (Change("objectives.grpo:backward", "d_loss * saved.beta", "d_loss"),),
    ),
    Bug(
        "grpo_divergence_of_the_old_policy",
        "the divergence is that from the policy that drew, not from the reference",
        "no public report known",
        "operations.grpo.output",
        ("operations", "objectives_of_trl"),
        (
            Change(
                "objectives.grpo:forward",
                "np.where(counts, reference_log_probs, 0)",
                "np.where(counts, old_log_probs, 0)",
            ),
        ),
    ),
)

RECORD = Record(grpo, draw, SPECIAL, complex_step, BUGS)
