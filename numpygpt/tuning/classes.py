"""The goal of a classifier: the class of a text, read at its last token. The model has a `class_head`.

A batch is a `LabelBatch`.
"""

from typing import Any

import numpy as np

from numpygpt.data.batching import LabelBatch
from numpygpt.model.gpt import GPTModel
from numpygpt.objectives import classification
from numpygpt.shapes import IGNORE_INDEX, Array, Inexact, Integer
from numpygpt.tuning.through import OfLogits, Plain, logits_of


class Classes(OfLogits):
    """See `numpygpt.objectives.classification`."""

    def weight(self, batch: LabelBatch) -> float:
        """How many texts count."""
        return float(np.count_nonzero(batch.labels != IGNORE_INDEX))

    def rows(self, batch: LabelBatch) -> Plain:
        """See `OfLogits`."""
        return Plain(batch.inputs)

    def forward(self, logits: Inexact[Array, "B T C"], batch: LabelBatch) -> tuple[Any, classification.Saved]:
        """See `OfLogits`."""
        return classification.forward(logits, batch.lengths, batch.labels)

    def backward(self, d_loss: Any, saved: classification.Saved) -> Inexact[Array, "B T C"]:
        """See `OfLogits`."""
        return classification.backward(d_loss, saved).logits


def last_scores(
    model: GPTModel, inputs: Integer[Array, "B T"], lengths: Integer[Array, "B"]
) -> Inexact[Array, "B C"]:
    """The scores of the head at the last real token of each text, without dropout."""
    return logits_of(model, Plain(inputs))[np.arange(len(inputs)), lengths - 1]
