"""`weighted_next_token`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.objectives import weighted_next_token
from numpygpt.ops import weighted_mean
from numpygpt.ops.cross_entropy import IGNORE_INDEX


def draw(source: Source) -> Call:
    """Draw targets some of which do not count, weights or none, and smoothed labels or not."""
    B, T, V = source.size(3), source.size(4), source.choose.integer(2, 9)
    arguments = {"logits": source.normal(B, T, V), "targets": source.targets(V, (B, T))}
    weights = source.weights((B, T)) if source.yes() else None
    return Call({**arguments, "weights": weights}, {"smoothing": source.choose.one_of([0.0, 0.2]), **source.mean()})


def complex_step(source: Source) -> Mapping[str, Call]:
    """Each way of the mean, with smoothed labels, and targets and weights that do not count."""
    targets, weights = source.rng.integers(0, 7, (3, 4)), source.rng.random((3, 4))
    targets[0, 1], targets[2], weights[1, 2] = IGNORE_INDEX, IGNORE_INDEX, 0
    arguments = {"logits": source.normal(3, 4, 7), "targets": targets, "weights": weights}
    return {way: Call(arguments, {"over": way, "smoothing": 0.2}) for way in weighted_mean.WAYS}


SPECIAL = {
    "no token counts": Call(
        {"logits": np.arange(12.0).reshape(2, 2, 3), "targets": np.array([[1, 2], [IGNORE_INDEX, 0]])}
        | {"weights": np.array([[0.0, 0.0], [1.0, 0.0]])},
    ),
    "one token": Call({"logits": np.array([[[1.0, 2.0, 0.0]]]), "targets": np.array([[2]]), "weights": None}),
    "logits of 1e5": Call(
        {"logits": np.array([[[1e5, -1e5, 0.0], [0.0, 1e5, 1e5]]]), "targets": np.array([[0, 2]]), "weights": None},
        {"over": "sequences"},
    ),
}

BUGS = (
    Bug(
        "weights_of_ignored_targets_count",
        "the mean divides by the weights of targets that do not count, too",
        "trl#3728",
        "operations.weighted_next_token.output",
        ("operations", "objectives"),
        (
            Change(
                "objectives.weighted_next_token:effective_weights",
                "np.where(targets == IGNORE_INDEX, 0, 1 if weights is None else weights)",
                "np.where(targets == targets, 1 if weights is None else weights, 0)",
            ),
        ),
    ),
    Bug(
        "weighted_loss_of_the_wrong_sign",
        "the gradient makes the given tokens less likely",
        "no public report known",
        "operations.weighted_next_token.d_logits",
        ("operations", "operations_complex_step"),
        (
            Change(
                "objectives.weighted_next_token:backward",
                "-weighted_mean.backward(d_loss",
                "weighted_mean.backward(d_loss",
            ),
        ),
    ),
    Bug(
        "parts_by_their_own_tokens",
        "a micro-batch divides by its own tokens, not by those of the whole batch",
        "transformers#35203",
        "operations.weighted_next_token.output",
        ("operations", "parts_of_batches"),
        (
            Change(
                "objectives.weighted_next_token:forward",
                "over=over, normalizer=normalizer",
                "over=over, normalizer=None",
            ),
        ),
    ),
)

RECORD = Record(weighted_next_token, draw, SPECIAL, complex_step, BUGS)
