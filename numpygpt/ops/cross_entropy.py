"""Softmax cross-entropy: the mean, over the targets, of the negative log probability the logits give them.

    logits           (N, V)   x
    targets          (N)      y, ids in [0, V); rows whose target is ignore_index do not count
    log_normalizer   (N, 1)   z
    loss             ()       in nats

Forward, with n the number of counted rows:

    (1)  z = max(x) + log(sum(exp(x - max(x))))    log of the softmax's denominator, without overflow
    (2)  loss = sum over counted rows of (z - x[y]) / n

Derivation, for a counted row; softmax's log derivative gives dz = sum(p dx) with p = exp(x - z):

    dloss = (sum(p dx) - dx[y]) / n
    d_x = d_loss (p - onehot(y)) / n               0 for rows that do not count

Each row of d_x sums to 0, for adding a constant to a row's logits changes nothing.

Saved: the logits, z and the targets; the probabilities are formed again in the backward, block by block, because a
second array of N x V (103 MB for two sequences of 256 GPT-2 tokens) would be the largest in the run.
Traps: a mean over all rows where some are ignored; 0/0 where all are: the sum over no target is 0, with gradient 0
(PyTorch gives NaN), so that a micro-batch of padding adds nothing.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.parallel import over_rows
from numpygpt.shapes import Array, Inexact, Integer

IGNORE_INDEX = -100


class Saved(NamedTuple):
    logits: Inexact[Array, "N V"]
    log_normalizer: Inexact[Array, "N 1"]
    targets: Integer[Array, "N"]
    ignore_index: int


def forward(
    logits: Inexact[Array, "N V"],
    targets: Integer[Array, "N"],
    *,
    ignore_index: int = IGNORE_INDEX,
) -> tuple[Any, Saved]:
    """The loss is a NumPy scalar of the logits' dtype.

    Raises InputError for a target outside [0, V) that is not ignore_index.
    """
    log_normalizer = np.empty((len(logits), 1), logits.dtype)

    def block(logits: Array, log_normalizer: Array) -> None:
        highest = logits.real.max(axis=-1, keepdims=True)
        np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True), out=log_normalizer)
        log_normalizer += highest  # (1)

    over_rows(block, logits, log_normalizer)
    counted = np.flatnonzero(targets != ignore_index)
    _refuse_targets_outside_the_vocabulary(targets[counted], logits.shape[1])
    losses = log_normalizer[counted, 0] - logits[counted, targets[counted]]
    loss = losses.sum() / logits.dtype.type(max(1, len(counted)))  # (2)
    return loss, Saved(logits, log_normalizer, targets, ignore_index)


class Gradients(NamedTuple):
    logits: Inexact[Array, "N V"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    logits, log_normalizer, targets, ignore_index = saved
    counted = np.flatnonzero(targets != ignore_index)
    row_weight = np.zeros((len(targets), 1), logits.dtype)
    row_weight[counted] = d_loss / max(1, len(counted))  # undoes (2)
    d_logits = np.empty(logits.shape, logits.dtype)

    def block(logits: Array, log_normalizer: Array, row_weight: Array, d_logits: Array) -> None:
        np.subtract(logits, log_normalizer, out=d_logits)
        np.exp(d_logits, out=d_logits)  # undoes (1)
        d_logits *= row_weight

    over_rows(block, logits, log_normalizer, row_weight, d_logits)
    d_logits[counted, targets[counted]] -= row_weight[counted, 0]
    return Gradients(d_logits)


def _refuse_targets_outside_the_vocabulary(targets: Array, vocab_size: int) -> None:
    outside = (targets < 0) | (targets >= vocab_size)
    if outside.any():
        raise InputError(
            f"target id {targets[outside][0]} is outside the vocabulary of {vocab_size}; "
            f"ids go from 0 to {vocab_size - 1}: was the text encoded with another tokenizer?"
        )
