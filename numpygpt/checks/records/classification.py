"""`classification`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.objectives import classification
from numpygpt.ops.cross_entropy import IGNORE_INDEX


def draw(source: Source) -> Call:
    """Draw texts of several lengths, of which some may not count."""
    B, T, C = source.size(4), source.size(5), source.choose.integer(2, 6)
    arguments = {"logits": source.normal(B, T, C), "lengths": source.rng.integers(1, T + 1, B)}
    options = {"smoothing": source.choose.one_of([0.0, 0.1])} | ({"normalizer": 7.5} if source.yes() else {})
    return Call({**arguments, "labels": source.targets(C, (B,))}, options)


def complex_step(source: Source) -> Mapping[str, Call]:
    """Texts of several lengths, of which one does not count."""
    labels = source.rng.integers(0, 4, 5)
    labels[2] = IGNORE_INDEX
    arguments = {"logits": source.normal(5, 6, 4), "lengths": np.array([1, 6, 3, 4, 2]), "labels": labels}
    return {"": Call(arguments), "smoothed": Call(arguments, {"smoothing": 0.1})}


SPECIAL = {
    "no text counts": Call(
        {"logits": np.arange(12.0).reshape(2, 3, 2), "lengths": np.array([1, 3]), "labels": np.full(2, IGNORE_INDEX)}
    ),
    "one token": Call({"logits": np.array([[[1.0, 3.0]]]), "lengths": np.array([1]), "labels": np.array([0])}),
    "scores of 1e5": Call(
        {"logits": np.array([[[0.0, 1.0], [1e5, -1e5]]]), "lengths": np.array([2]), "labels": np.array([1])}
    ),
}

BUGS = (
    Bug(
        "class_of_the_padding",
        "the last position is read, whether it is padding or not",
        "no public report known",
        "operations.classification.output",
        ("operations", "operations_complex_step", "objectives"),
        (
            Change(
                "objectives.classification:forward", "np.arange(len(logits)), lengths - 1", "np.arange(len(logits)), -1"
            ),
        ),
    ),
    Bug(
        "mean_over_texts_that_do_not_count",
        "the mean divides by the texts, also by those without a label",
        "no public report known",
        "operations.classification.output",
        ("operations", "parts_of_batches"),
        (Change("objectives.classification:forward", "np.count_nonzero(labels != IGNORE_INDEX)", "len(labels)"),),
    ),
    Bug(
        "class_gradient_at_the_first_position",
        "the gradient goes one position too far to the left",
        "no public report known",
        "operations.classification.d_logits",
        ("operations", "operations_complex_step"),
        (Change("objectives.classification:backward", "saved.lengths - 1", "saved.lengths - 2"),),
    ),
)

RECORD = Record(classification, draw, SPECIAL, complex_step, BUGS)
