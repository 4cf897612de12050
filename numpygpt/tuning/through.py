"""A goal whose loss is made of the logits of one forward: forward, loss, and back the same way."""

from typing import Any, NamedTuple, Protocol

from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.random.masks import RandomSource
from numpygpt.shapes import Array, Inexact, Integer
from numpygpt.tree import Trained, nothing

#: The means that a goal may have: the means of micro-batches, each by its weight, add up to that of the batch.
MEANS = ("tokens", "sequences")


class Rows(Protocol):
    """What a forward reads: token ids (B, T), and what else it has to be told of them."""

    @property
    def inputs(self) -> Integer[Array, "B T"]:
        """Token ids."""

    @property
    def options(self) -> dict[str, Any]:
        """Positions and what each token may see, if these are not the usual ones."""


class OfLogits:
    """A `numpygpt.training.goal.Goal` without its loss."""

    def rows(self, batch: Any) -> Any:
        """The `Rows` of a batch."""
        return batch

    def forward(self, logits: Inexact[Array, "B T V"], batch: Any) -> tuple[Any, Any]:
        """The mean loss of the batch, and what `backward` needs."""
        raise NotImplementedError

    def backward(self, d_loss: Any, saved: Any) -> Inexact[Array, "B T V"]:
        """The gradient of the logits."""
        raise NotImplementedError

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
        rows = self.rows(batch)
        masks = None if rng is None else model.draw_dropout_masks(rng, *rows.inputs.shape)
        logits, saved = model.forward(rows.inputs, masks=masks, trained=trained, **rows.options)
        loss, scored = self.forward(logits, batch)
        d_logits = self.backward(loss.dtype.type(loss_scale), scored)
        del logits, scored, masks
        return loss, model.backward(d_logits, saved, consume=True)

    def loss(self, model: GPTModel, batch: Any) -> Any:
        """See `Goal`."""
        return self.forward(logits_of(model, self.rows(batch)), batch)[0]


def refuse_another_mean(over: str) -> None:
    """InputError for "sum", which is no mean, and for any other word."""
    if over not in MEANS:
        raise InputError(f"the mean is over {over!r}; expected {' or '.join(map(repr, MEANS))}")


def logits_of(model: GPTModel, rows: Any) -> Inexact[Array, "B T V"]:
    """The logits of rows, without dropout."""
    return model.forward(rows.inputs, trained=nothing, **rows.options)[0]


class Plain(NamedTuple):
    """Rows of which a forward has to be told nothing more."""

    inputs: Integer[Array, "B T"]

    @property
    def options(self) -> dict[str, Any]:
        """None."""
        return {}
