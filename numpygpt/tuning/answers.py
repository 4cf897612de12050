"""The goal of instruction tuning: the answers of a conversation become likely after their prompts.

A batch is a `TokenBatch` or a `PackedBatch`, whose targets leave the prompts out.
"""

from dataclasses import dataclass
from typing import Any

from numpygpt.objectives import weighted_next_token
from numpygpt.ops import weighted_mean
from numpygpt.shapes import Array, Inexact
from numpygpt.tuning.through import OfLogits, refuse_another_mean


@dataclass(frozen=True)
class Answers(OfLogits):
    """See `numpygpt.objectives.weighted_next_token`.

    over        "tokens": each token counts alike; "sequences": each row does, for batches that are not packed
    smoothing   the share of a target that goes to all tokens alike
    """

    over: str = "tokens"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        refuse_another_mean(self.over)

    def weight(self, batch: Any) -> float:
        """How many targets count, or how many rows have any."""
        return weighted_mean.total(weighted_next_token.effective_weights(batch.targets), over=self.over)

    def forward(self, logits: Inexact[Array, "B T V"], batch: Any) -> tuple[Any, weighted_next_token.Saved]:
        """See `OfLogits`."""
        return weighted_next_token.forward(logits, batch.targets, smoothing=self.smoothing, over=self.over)

    def backward(self, d_loss: Any, saved: weighted_next_token.Saved) -> Inexact[Array, "B T V"]:
        """See `OfLogits`."""
        return weighted_next_token.backward(d_loss, saved).logits
