"""`weighted_mean`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import weighted_mean


def draw(source: Source) -> Call:
    """Draw values and weights, of which some are 0."""
    shape = source.size(4), source.size(5)
    return Call({"x": source.normal(*shape), "weights": source.weights(shape)}, source.mean())


def complex_step(source: Source) -> Mapping[str, Call]:
    """Each way, with a sequence that does not count."""
    weights = source.rng.random((3, 5))
    weights[1], weights[2, 3:] = 0, 0
    x = source.normal(3, 5)
    return {way: Call({"x": x, "weights": weights}, {"over": way}) for way in weighted_mean.WAYS}


SPECIAL = {
    "no token counts": Call({"x": np.ones((2, 3)), "weights": np.zeros((2, 3))}),
    "no token counts, by sequences": Call({"x": np.ones((2, 3)), "weights": np.zeros((2, 3))}, {"over": "sequences"}),
    "what does not count is not a number": Call(
        {"x": np.array([[1.0, np.nan, -np.inf]]), "weights": np.array([[2.0, 0.0, 0.0]])}
    ),
}

BUGS = (
    Bug(
        "mean_over_all_tokens",
        "the mean divides by the number of all tokens, also of those that do not count",
        "transformers#35203",
        "operations.weighted_mean.output",
        ("operations", "objectives"),
        (Change("ops.weighted_mean:total", "w.sum(dtype=np.float64) if", "w.size if"),),
    ),
    Bug(
        "sequences_by_their_tokens",
        "the mean over sequences counts a long sequence more",
        "no public report known",
        "operations.weighted_mean.output",
        ("operations", "objectives"),
        (Change("ops.weighted_mean:forward", "np.where(lengths == 0, 1, lengths)", "lengths.max()"),),
    ),
)

RECORD = Record(weighted_mean, draw, SPECIAL, complex_step, BUGS)
