"""`hidden_match`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.objectives import hidden_match
from numpygpt.ops import weighted_mean


def draw(source: Source) -> Call:
    """Draw hidden states of both."""
    B, T, D = source.size(3), source.size(4), source.size(6)
    arguments = {"student": source.normal(B, T, D), "teacher": source.normal(B, T, D)}
    return Call({**arguments, "weights": source.weights((B, T))}, source.mean())


def complex_step(source: Source) -> Mapping[str, Call]:
    """Each way of the mean, with positions that do not count."""
    weights = source.rng.random((3, 4)) + 0.1
    weights[1], weights[2, 2:] = 0, 0
    arguments = {"student": source.normal(3, 4, 5), "teacher": source.normal(3, 4, 5), "weights": weights}
    return {way: Call(arguments, {"over": way}) for way in weighted_mean.WAYS}


_STATES = {"student": np.arange(6.0).reshape(1, 2, 3), "teacher": np.ones((1, 2, 3))}

SPECIAL = {
    "no position counts": Call({**_STATES, "weights": np.zeros((1, 2))}),
    "one position": Call({**_STATES, "weights": np.array([[False, True]])}),
    "both are the same": Call({**_STATES, "teacher": _STATES["student"], "weights": np.ones((1, 2))}),
    "what does not count is not a number": Call(
        {**_STATES, "teacher": np.array([[[1.0, 0.0, 2.0], [np.nan, np.inf, 0.0]]]), "weights": np.array([[1.0, 0.0]])}
    ),
}

BUGS = (
    Bug(
        "hidden_states_summed",
        "the distance is the sum over features, not their mean",
        "no public report known",
        "operations.hidden_match.output",
        ("operations", "operations_complex_step", "objectives"),
        (Change("objectives.hidden_match:forward", "(e * e).mean(axis=-1)", "(e * e).sum(axis=-1)"),),
    ),
    Bug(
        "hidden_states_of_padding",
        "a padded position that is not a number spoils the loss",
        "no public report known",
        "none",
        ("operations_at_extremes", "objectives"),
        (Change("objectives.hidden_match:forward", "np.where(counts, teacher, 0)", "teacher"),),
    ),
    Bug(
        "hidden_match_half_its_gradient",
        "the gradient lacks the 2 of the square",
        "no public report known",
        "operations.hidden_match.d_student",
        ("operations", "operations_complex_step"),
        (Change("objectives.hidden_match:backward", "2 * saved.e", "saved.e"),),
    ),
)

RECORD = Record(hidden_match, draw, SPECIAL, complex_step, BUGS)
