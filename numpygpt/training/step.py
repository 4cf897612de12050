"""One step of training, on one or several micro-batches."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from numpygpt.random.masks import RandomSource
from numpygpt.shapes import Array
from numpygpt.training.clipping import clip_grad_norm, common_norm, gradient_norms
from numpygpt.training.goal import NEXT_TOKEN, Goal
from numpygpt.training.loss_scale import LossScale
from numpygpt.training.optimizer import Optimizer
from numpygpt.training.trouble import not_finite
from numpygpt.tree import Trained, everything


class StepTaken(NamedTuple):
    """What is known of a step that was taken.

    loss     of its batch before the step, in nats
    norms    the Euclidean norm of each gradient before clipping, by the name of the parameter
    tokens   how many tokens the batch has; None: as many as the options say
    facts    what else is worth telling of the step, by name
    """

    loss: float
    norms: Mapping[str, float]
    tokens: int | None = None
    facts: Mapping[str, float] = {}

    @property
    def grad_norm(self) -> float:
        """The norm of all gradients together; not finite if a step was left out because its gradients overflowed."""
        return math.hypot(*self.norms.values())


def loss_and_grads_of(
    model: Any,
    micro_batches: Sequence[Any],
    *,
    goal: Goal = NEXT_TOKEN,
    rng: RandomSource | None = None,
    trained: Trained = everything,
    loss_scale: float = 1.0,
) -> tuple[float, dict[str, Array]]:
    """The loss, in nats, and the gradients {name: gradient} of one batch that is cut into micro-batches.

    Only the activations of one micro-batch are in memory at a time. Each micro-batch is weighted by its number of
    targets, so that every target has the same weight in the result. A plain mean of the micro-batches' means would not
    do that. With one micro-batch this is `goal.loss_and_grads`.

    model        what the goal takes: a GPTModel, for most
    goal         what the micro-batches are batches of, and what they are weighted by; by default (inputs, targets)
    rng          draws the dropout masks; None: no dropout
    trained      whether the parameter of a name is trained, and has a gradient; by default all are
    loss_scale   what the gradients are multiplied by, from the first one on
    """
    counts = [goal.weight(batch) for batch in micro_batches]
    total_loss = 0.0
    total: dict[str, Array] = {}
    for batch, count in zip(micro_batches, counts, strict=True):
        loss, grads = goal.loss_and_grads(model, batch, rng=rng, trained=trained, loss_scale=loss_scale)
        share = count / (sum(counts) or 1)
        total_loss += share * float(loss)
        if len(micro_batches) == 1:
            return total_loss, grads
        for name, gradient in grads.items():
            if name in total:
                total[name] += share * gradient
            else:
                total[name] = share * gradient
    return total_loss, total


def training_step(
    model: Any,
    optimizer: Optimizer,
    micro_batches: Sequence[Any],
    *,
    goal: Goal = NEXT_TOKEN,
    rng: RandomSource | None = None,
    max_norm: float | None = None,
    scale: LossScale | None = None,
) -> StepTaken:
    """Take one step of the optimizer on the gradients of the micro-batches together.

    Gradients are computed for what the optimizer trains, and for nothing else.

    goal       as `loss_and_grads_of` takes it
    rng        draws the dropout masks; None: no dropout
    max_norm   clip the gradients to this norm; None: they are not clipped
    scale      of the loss, in fp16: a step whose gradients overflow is left out; None: 1

    Raises InputError, with the weights unchanged, if the loss is not finite, or if the norm of the gradients is not:
    in fp16, if it is not at any scale.
    """
    scale = scale or LossScale(None)
    overflow: Any = "ignore" if scale.adapts else None  # it is looked for in the norms
    with np.errstate(over=overflow, invalid=overflow):
        loss, grads = loss_and_grads_of(
            model, micro_batches, goal=goal, rng=rng, trained=optimizer.trains, loss_scale=scale.value
        )
    if not math.isfinite(loss):
        raise not_finite(loss, optimizer.steps + 1, optimizer.lr)
    _unscale(grads, scale.value)
    taken = StepTaken(loss, gradient_norms(grads))
    if scale.refuses(taken.norms):
        scale.overflowed()
        return taken
    common_norm(taken.norms)  # InputError if it is not finite
    if max_norm is not None:
        clip_grad_norm(grads, max_norm, taken.norms)
    optimizer.step(grads)
    scale.fitted()
    return taken


def _unscale(grads: Mapping[str, Array], scale: float) -> None:
    """Divide the gradients, in place, by the scale of the loss."""
    if scale != 1:
        for gradient in grads.values():
            gradient *= 1 / scale
