"""The goal of distillation: a student has a teacher's distribution at each position that counts.

A batch is a `TokenBatch` or a `PackedBatch`. Where targets count, the two distributions are compared:

    (1)  loss = distillation(student's logits, teacher's logits)
    (2)  and, if it is asked for, h hidden_match(student's hidden state, teacher's)      h its share
"""

from dataclasses import dataclass
from typing import Any

from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.objectives import distillation, hidden_match
from numpygpt.ops import weighted_mean
from numpygpt.random.masks import RandomSource
from numpygpt.shapes import IGNORE_INDEX, Array
from numpygpt.tree import Trained, nothing
from numpygpt.tuning.through import refuse_another_mean


@dataclass(frozen=True)
class Distillation:
    """See `numpygpt.objectives.distillation` and `numpygpt.objectives.hidden_match`.

    teacher   a model with the student's vocabulary; for `hidden`, with its emb_dim, too
    hidden    what the distance of the hidden states is multiplied by; 0: it is not computed
    """

    teacher: GPTModel
    temperature: float = 2.0
    direction: str = "forward"
    hidden: float = 0.0
    over: str = "tokens"

    def __post_init__(self) -> None:
        refuse_another_mean(self.over)

    def weight(self, batch: Any) -> float:
        """How many positions count, or how many rows have any."""
        return weighted_mean.total(_weights(batch), over=self.over)

    def loss_and_grads(
        self,
        model: GPTModel,
        batch: Any,
        *,
        rng: RandomSource | None = None,
        trained: Trained | None = None,
        loss_scale: float = 1.0,
    ) -> tuple[Any, dict[str, Array]]:
        """See `Goal`."""
        masks = None if rng is None else model.draw_dropout_masks(rng, *batch.inputs.shape)
        logits, saved = model.forward(batch.inputs, masks=masks, trained=trained, **batch.options)
        loss, (distilled, matched) = self._forward(model, logits, saved.hidden, batch)
        d_loss, d_hidden = loss.dtype.type(loss_scale), None
        if matched is not None:
            d_hidden = hidden_match.backward(d_loss * self.hidden, matched).student  # undoes (2)
        d_logits = distillation.backward(d_loss, distilled).student  # undoes (1)
        return loss, model.backward(d_logits, saved, d_hidden=d_hidden, consume=True)

    def loss(self, model: GPTModel, batch: Any) -> Any:
        """See `Goal`."""
        logits, saved = model.forward(batch.inputs, trained=nothing, **batch.options)
        return self._forward(model, logits, saved.hidden, batch)[0]

    def _forward(self, model: GPTModel, logits: Array, hidden: Array, batch: Any) -> tuple[Any, tuple[Any, Any]]:
        self._refuse_another_size(model)
        theirs, saved = self.teacher.forward(batch.inputs, trained=nothing, **batch.options)
        weights = _weights(batch)
        loss, distilled = distillation.forward(  # (1)
            logits, theirs, weights, temperature=self.temperature, direction=self.direction, over=self.over
        )
        if not self.hidden:
            return loss, (distilled, None)
        distance, matched = hidden_match.forward(hidden, saved.hidden, weights, over=self.over)
        return loss + loss.dtype.type(self.hidden) * distance, (distilled, matched)  # (2)

    def _refuse_another_size(self, model: GPTModel) -> None:
        names = ("vocab_size", "emb_dim") if self.hidden else ("vocab_size",)
        for name in names:
            ours, theirs = getattr(model.config, name), getattr(self.teacher.config, name)
            if ours != theirs:
                raise InputError(f"the teacher's {name} is {theirs}; expected {ours}, the student's")


def _weights(batch: Any) -> Array:
    return batch.targets != IGNORE_INDEX
