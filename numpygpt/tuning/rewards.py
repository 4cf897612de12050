"""The goal of a reward model: of two answers to a prompt, the preferred one has the higher score.

The score of a text is that of a head of one row at the text's last token (`class_head(model, 1)`). A batch is a
`PairBatch`; both answers go through the model in one forward.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.data.batching import PairBatch, TokenBatch
from numpygpt.objectives import reward
from numpygpt.shapes import Array, Inexact, Integer
from numpygpt.tuning.through import OfLogits


class Saved(NamedTuple):
    """What the objective saved, the shape of the logits, and the real tokens of each row."""

    reward: reward.Saved
    shape: tuple[int, ...]
    lengths: Integer[Array, "B"]


class Rewards(OfLogits):
    """See `numpygpt.objectives.reward`."""

    def weight(self, batch: PairBatch) -> float:
        """How many pairs there are."""
        return float(len(batch.chosen.lengths))

    def rows(self, batch: PairBatch) -> TokenBatch:
        """See `OfLogits`."""
        return batch.both

    def forward(self, logits: Inexact[Array, "B T 1"], batch: PairBatch) -> tuple[Any, Saved]:
        """See `OfLogits`."""
        lengths = batch.both.lengths
        chosen, rejected = np.split(logits[np.arange(len(logits)), lengths - 1, 0], 2)
        loss, saved = reward.forward(chosen, rejected)
        return loss, Saved(saved, logits.shape, lengths)

    def backward(self, d_loss: Any, saved: Saved) -> Inexact[Array, "B T 1"]:
        """See `OfLogits`."""
        d_scores = np.concatenate(reward.backward(d_loss, saved.reward))
        d_logits = np.zeros(saved.shape, d_scores.dtype)
        d_logits[np.arange(len(d_logits)), saved.lengths - 1, 0] = d_scores
        return d_logits
