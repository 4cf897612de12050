"""How well a classifier tells the classes of texts: by the scores at the last token of each.

    accuracy   the share of texts whose class has the highest score; of equal ones the first counts
    loss       the mean cross-entropy (`numpygpt.objectives.classification`), in nats a text
    counts     (C, C)   how many texts of the class of a row were taken for that of a column
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numpygpt.data.batching import LabeledTexts
from numpygpt.evaluation.scores import LogitsOf, checked, longest_first
from numpygpt.objectives import classification
from numpygpt.shapes import Array, Integer


class ClassScore(NamedTuple):
    """Of all texts together, as above."""

    loss: float
    counts: Integer[Array, "C C"]

    @property
    def accuracy(self) -> float:
        """As above."""
        return float(self.counts.trace() / self.counts.sum())

    @property
    def recalls(self) -> list[float | None]:
        """Of each class, the share of its texts that were found; None if there is none."""
        return [float(row[label] / row.sum()) if row.sum() else None for label, row in enumerate(self.counts)]


def score_classes(
    logits_of: LogitsOf,
    texts: LabeledTexts,
    classes: int,
    *,
    batch_size: int = 1,
    advance: Callable[[int], Any] = lambda done: None,
) -> ClassScore:
    """The score over all texts; `advance` is told how many more are done.

    Raises InputError for scores that are not finite.
    """
    counts, nats = np.zeros((classes, classes), np.int64), 0.0
    for numbers in longest_first([len(text.token_ids) for text in texts.texts], batch_size):
        batch = texts.batch(np.array(numbers))
        logits = checked(logits_of(batch.inputs))
        loss, _ = classification.forward(logits, batch.lengths, batch.labels)
        nats += float(loss) * len(numbers)
        found = logits[np.arange(len(logits)), batch.lengths - 1].argmax(axis=-1)
        np.add.at(counts, (batch.labels, found), 1)
        advance(len(numbers))
    return ClassScore(nats / len(texts), counts)
