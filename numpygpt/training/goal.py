"""What a model is trained for: the loss of a batch with its gradients, and how much the batch counts.

A step of training knows no more of a batch than its goal says. Text has the goal here; `numpygpt.tuning` has those of
instructions, classes, preferences, rewards and teachers.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from numpygpt.ops import cross_entropy
from numpygpt.random.masks import RandomSource
from numpygpt.shapes import Array
from numpygpt.tree import Trained, nothing


@runtime_checkable
class Goal(Protocol):
    """What is to become small."""

    def weight(self, batch: Any) -> float:
        """What the mean over the batch divides by: its targets, its pairs, its answers.

        A batch that is cut into micro-batches has the mean of theirs, each with this weight.
        """

    def loss_and_grads(
        self,
        model: Any,
        batch: Any,
        *,
        rng: RandomSource | None = None,
        trained: Trained | None = None,
        loss_scale: float = 1.0,
    ) -> tuple[Any, dict[str, Array]]:
        """The mean loss of the batch, in nats, and {name: gradient} of what is trained; arguments as `GPTModel`'s."""

    def loss(self, model: Any, batch: Any) -> Any:
        """The mean loss of the batch without dropout."""


class NextToken:
    """Each token of a text is to be likely after those before it.

    A batch is a pair (inputs, targets), (B, T) each; targets of `cross_entropy.IGNORE_INDEX` do not count.
    """

    def weight(self, batch: tuple[Array, Array]) -> float:
        """How many targets count."""
        return float(np.count_nonzero(np.asarray(batch[1]) != cross_entropy.IGNORE_INDEX))

    def loss_and_grads(self, model: Any, batch: tuple[Array, Array], **options: Any) -> tuple[Any, dict[str, Array]]:
        """See `Goal`."""
        loss, gradients = model.loss_and_grads(*batch, **options)
        return loss, gradients

    def loss(self, model: Any, batch: tuple[Array, Array]) -> Any:
        """See `Goal`."""
        return model.loss_and_grads(*batch, trained=nothing)[0]


NEXT_TOKEN = NextToken()


class Counted(NamedTuple):
    """A mean loss, and what it counts beside others."""

    loss: float
    weight: float


def mean_loss(goal: Goal, model: Any, batches: Any) -> float:
    """The mean loss over several batches, each with its weight; 0 if nothing counts."""
    found = [Counted(float(goal.loss(model, batch)), goal.weight(batch)) for batch in batches]
    return sum(counted.loss * counted.weight for counted in found) / (sum(counted.weight for counted in found) or 1)
