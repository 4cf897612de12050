"""One step of training, of one or several micro-batches."""

import math
from collections.abc import Sequence

import numpy as np

from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.ops import cross_entropy
from numpygpt.random.masks import RandomSource
from numpygpt.shapes import Array
from numpygpt.training.adamw import AdamW
from numpygpt.training.clipping import clip_grad_norm

Batch = tuple[Array, Array]


def loss_and_grads_of(
    model: GPTModel, micro_batches: Sequence[Batch], *, rng: RandomSource | None = None
) -> tuple[float, dict[str, Array]]:
    """Loss and gradients of several micro-batches as of one batch of them all, with the activations of one at a time.

    Each micro-batch counts by its number of targets, so that a target weighs the same wherever it stands; a plain mean
    of the micro-batches' means would not do that. With one micro-batch this is `model.loss_and_grads`.
    """
    counts = [int(np.count_nonzero(np.asarray(targets) != cross_entropy.IGNORE_INDEX)) for _, targets in micro_batches]
    total_loss = 0.0
    total: dict[str, Array] = {}
    for (inputs, targets), count in zip(micro_batches, counts, strict=True):
        loss, grads = model.loss_and_grads(inputs, targets, rng=rng)
        share = count / max(1, sum(counts))
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
    model: GPTModel,
    optimizer: AdamW,
    micro_batches: Sequence[Batch],
    *,
    rng: RandomSource | None = None,
    max_norm: float | None = None,
) -> float:
    """One step of the optimizer on the micro-batches' common gradient, clipped to max_norm if given; returns the loss.

    Raises InputError, with the weights unchanged, when the loss is not finite.
    """
    loss, grads = loss_and_grads_of(model, micro_batches, rng=rng)
    if not math.isfinite(loss):
        raise InputError(
            f"the loss is {loss} at optimizer step {optimizer.steps + 1}; the weights are those before that step: "
            f"lower the learning rate (now {optimizer.lr:g}) or clip the gradients"
        )
    if max_norm is not None:
        clip_grad_norm(grads, max_norm)
    optimizer.step(grads)
    return loss
