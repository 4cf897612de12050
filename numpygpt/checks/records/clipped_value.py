"""`clipped_value`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.objectives import clipped_value
from numpygpt.ops import weighted_mean


def draw(source: Source) -> Call:
    """Draw values that have moved since the tokens were drawn, some of them beyond the clip."""
    shape = source.size(4), source.size(5)
    values = source.normal(*shape)
    old = values + source.choose.one_of([0.0, 0.1, 0.5]) * source.rng.standard_normal(shape)
    arguments = {"values": values, "old_values": old, "returns": source.normal(*shape)}
    options = {"clip": source.choose.one_of([0.2, 0.05])} | source.mean()
    return Call({**arguments, "weights": source.weights(shape)}, options)


def complex_step(source: Source) -> Mapping[str, Call]:
    """Values on every side of the clip and of the returns, by each way of the mean."""
    weights = source.rng.random((4, 5)) + 0.1
    weights[1], weights[2, 3:] = 0, 0
    values = source.rng.standard_normal((4, 5))
    arguments = {
        "values": values,
        "old_values": values + source.rng.choice([-0.5, -0.1, 0.1, 0.5], (4, 5)),
        "returns": values + source.rng.choice([-2.0, -0.7, 0.7, 2.0], (4, 5)),
        "weights": weights,
    }
    return {way: Call(arguments, {"over": way}) for way in weighted_mean.WAYS}


def _answer(values: list[float], old: list[float], returns: list[float], weights: list[float]) -> dict[str, np.ndarray]:
    """One answer."""
    named = {"values": values, "old_values": old, "returns": returns, "weights": weights}
    return {name: np.array([numbers]) for name, numbers in named.items()}


SPECIAL = {
    "no token counts": Call(_answer([1.0, 2.0], [0.0, 2.0], [1.0, 0.0], [0.0, 0.0])),
    "one token": Call(_answer([1.0], [1.1], [0.0], [1.0])),
    "within the clip, where old + (v - old) is not v": Call(
        _answer([0.04, -0.02, 0.04], [-0.13, -0.13, 0.16], [-0.4, 0.2, 0.0], [1.0, 1.0, 1.0])
    ),
    "on the clip": Call(_answer([1.25, 0.75], [1.0, 1.0], [2.0, 2.0], [1.0, 1.0]), {"clip": 0.25}),
    "all as they were": Call(_answer([1.0, 2.0], [1.0, 2.0], [1.0, 0.5], [1.0, 1.0])),
    "what does not count is not a number": Call(_answer([1.0, np.nan], [0.5, np.inf], [2.0, np.inf], [1.0, 0.0])),
}

BUGS = (
    Bug(
        "value_clip_takes_the_smaller",
        "the smaller of the two squares is taken",
        "no public report known",
        "operations.clipped_value.output",
        ("operations", "objectives"),
        (
            Change(
                "objectives.clipped_value:forward",
                "abs(bounded_error.real) > abs(error.real)",
                "abs(bounded_error.real) < abs(error.real)",
            ),
        ),
    ),
    Bug(
        "value_clip_around_the_return",
        "the value is clipped around the return, not around what it was",
        "no public report known",
        "operations.clipped_value.output",
        ("operations", "objectives"),
        (Change("objectives.clipped_value:forward", "bounded = old + np.where", "bounded = target + np.where"),),
    ),
    Bug(
        "value_gradient_of_what_does_not_count",
        "a padded position that is not a number spoils the loss",
        "no public report known",
        "none",
        ("operations_at_extremes", "objectives"),
        (Change("objectives.clipped_value:forward", "np.where(counts, array, 0)", "array"),),
    ),
    Bug(
        "value_gradient_twice_as_large",
        "the gradient is that of the square without its half",
        "no public report known",
        "operations.clipped_value.d_values",
        ("operations", "operations_complex_step"),
        (Change("objectives.clipped_value:backward", "saved.error * d_y", "2 * saved.error * d_y"),),
    ),
)

RECORD = Record(clipped_value, draw, SPECIAL, complex_step, BUGS)
