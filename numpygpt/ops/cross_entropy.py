"""Softmax cross-entropy: the mean, over the targets, of the negative log probability that the logits give them.

    logits           (N, V)   x
    targets          (N)      ids in [0, V); a row whose target is ignore_index does not count
    highest          (N, 1)   h
    log_sum          (N, 1)   l
    loss             ()       in nats

Forward, with the number of counted rows as `count`:

    (1)  h = max(x)                                the shift cancels, and keeps exp from overflowing
    (2)  l = log(sum(exp(x - h)))                  so that log softmax(x) = (x - h) - l
    (3)  loss = sum over counted rows of (l - (x[target] - h)) / count

Derivation, for a counted row. h drops out, as in softmax, and l + h has the differential sum(p * dx) with
p = softmax(x):

    dloss = (sum(p * dx) - dx[target]) / count
    d_x = d_loss (p - onehot(target)) / count      p = exp((x - h) - l); 0 for a row that does not count

Each row of d_x sums to 0, because adding a constant to a row's logits changes nothing.

Saved: the logits, h, l and the targets. The probabilities are formed again in the backward, block by block, because a
second array of N x V (103 MB for two sequences of 256 GPT-2 tokens) would be as large as the largest activation, the
logits. For the same reason a caller who does not need the logits again may have their gradient in their place (`out`).
Traps: (h + l) - x[target] for (3): if x[target] is the largest logit, the loss is what is left of their difference, and
h + l is rounded to the size of h; a mean over all rows where some are ignored; 0/0 where all are: the sum over no
target is 0, with gradient 0 (PyTorch gives NaN), so that a micro-batch of padding adds nothing.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.parallel import over_rows
from numpygpt.shapes import IGNORE_INDEX as IGNORE_INDEX  # for other modules too
from numpygpt.shapes import Array, Inexact, Integer


class Saved(NamedTuple):
    logits: Inexact[Array, "N V"]
    highest: Inexact[Array, "N 1"]
    log_sum: Inexact[Array, "N 1"]
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
    highest, log_sum = np.empty((2, len(logits), 1), logits.dtype)

    def block(logits: Array, highest: Array, log_sum: Array) -> None:
        highest[...] = logits.real.max(axis=-1, keepdims=True)  # (1)
        np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True), out=log_sum)  # (2)

    over_rows(block, logits, highest, log_sum)
    counted = np.flatnonzero(targets != ignore_index)
    _refuse_targets_outside_the_vocabulary(targets[counted], logits.shape[1])
    losses = log_sum[counted, 0] - (logits[counted, targets[counted]] - highest[counted, 0])
    loss = losses.sum() / logits.dtype.type(max(1, len(counted)))  # (3)
    return loss, Saved(logits, highest, log_sum, targets, ignore_index)


class Gradients(NamedTuple):
    logits: Inexact[Array, "N V"]


def backward(d_loss: Any, saved: Saved, *, out: Inexact[Array, "N V"] | None = None) -> Gradients:
    """`out` receives the gradient, and may be the saved logits themselves; None: a new array."""
    logits, highest, log_sum, targets, ignore_index = saved
    counted = np.flatnonzero(targets != ignore_index)
    row_weight = np.zeros((len(targets), 1), logits.dtype)
    row_weight[counted] = d_loss / max(1, len(counted))  # undoes (3)
    d_logits = np.empty(logits.shape, logits.dtype) if out is None else out

    def block(logits: Array, highest: Array, log_sum: Array, row_weight: Array, d_logits: Array) -> None:
        np.subtract(logits, highest, out=d_logits)
        d_logits -= log_sum
        np.exp(d_logits, out=d_logits)  # undoes (2) and (1)
        d_logits *= row_weight

    over_rows(block, logits, highest, log_sum, row_weight, d_logits)
    d_logits[counted, targets[counted]] -= row_weight[counted, 0]
    return Gradients(d_logits)


def _refuse_targets_outside_the_vocabulary(targets: Array, vocab_size: int) -> None:
    outside = (targets < 0) | (targets >= vocab_size)
    if outside.any():
        raise InputError(
            f"target id {targets[outside][0]} is outside the vocabulary of {vocab_size}; "
            f"ids go from 0 to {vocab_size - 1}: was the text encoded with another tokenizer?"
        )
