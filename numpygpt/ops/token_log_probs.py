"""Log-probabilities of given tokens: how likely the logits say each token is.

    logits      (..., V)   x
    ids         (...)      the tokens, in [0, V); a row whose id is ignore_index does not count
    smoothing   ε          the share that all tokens have in the place of the given one, 0 <= ε < 1
    highest     (..., 1)   h
    log_sum     (..., 1)   l
    log_probs   (...)      y, in nats; 0 for a row that does not count

Forward, for a row that counts:

    (1)  h = max(x)                                the shift cancels, and keeps exp from overflowing
    (2)  l = log(sum(exp(x - h)))                  so that log softmax(x) = (x - h) - l
    (3)  y = (1 - ε) (x[id] - h - l) + ε mean(x - h - l)

With ε = 0, y is the log-probability of the token. With ε > 0, -y is the cross-entropy with smoothed labels (Szegedy et
al. 2016, arXiv:1512.00567, section 7), in which the target has 1 - ε and all V tokens share ε.

Derivation, with p = softmax(x), l + h has the differential sum(p * dx):

    dy = (1 - ε) dx[id] + ε mean(dx) - sum(p * dx)
    d_x = d_y ((1 - ε) onehot(id) + ε / V - p)

Each row of d_x sums to 0, because adding a constant to a row's logits changes nothing. So this is `cross_entropy`
before its mean, and with the opposite sign: an objective that weights tokens, or that needs the sum over a sequence,
begins here.

A token that the logits exclude (x = -inf) has the log-probability -inf, and the gradient is still finite.

Saved: the logits, h, l and the ids. The probabilities are formed again in the backward, block by block.
Trap: with ε > 0 a logit of -inf makes the mean, and so the loss, infinite.
"""

from typing import NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.parallel import over_rows
from numpygpt.shapes import Array, Inexact, Integer


class Saved(NamedTuple):
    logits: Inexact[Array, "... V"]
    highest: Inexact[Array, "... 1"]
    log_sum: Inexact[Array, "... 1"]
    ids: Integer[Array, "..."]
    smoothing: float
    ignore_index: int


def forward(
    logits: Inexact[Array, "*rows V"],
    ids: Integer[Array, "*rows"],
    *,
    smoothing: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
) -> tuple[Inexact[Array, "*rows"], Saved]:
    """Raises InputError for an id outside [0, V) that is not ignore_index, and for a smoothing outside [0, 1)."""
    if not 0 <= smoothing < 1:
        raise InputError(f"smoothing is {smoothing!r}; expected a number from 0 to below 1")
    rows, flat = logits.reshape(-1, logits.shape[-1]), ids.reshape(-1)
    counted = _counted(flat, ignore_index, rows.shape[1])
    highest, log_sum = np.empty((2, len(rows), 1), logits.dtype)
    means = np.zeros((len(rows), 1), logits.dtype)

    def block(x: Array, highest: Array, log_sum: Array, means: Array) -> None:
        highest[...] = x.real.max(axis=-1, keepdims=True)  # (1)
        shifted = x - highest
        np.log(np.exp(shifted).sum(axis=-1, keepdims=True), out=log_sum)  # (2)
        if smoothing:
            means[...] = shifted.mean(axis=-1, keepdims=True)

    over_rows(block, rows, highest, log_sum, means)
    y = np.zeros(len(rows), logits.dtype)
    given = rows[counted, flat[counted]] - highest[counted, 0]
    y[counted] = (1 - smoothing) * given + smoothing * means[counted, 0] - log_sum[counted, 0]  # (3)
    shape = (*ids.shape, 1)
    saved = Saved(logits, highest.reshape(shape), log_sum.reshape(shape), ids, smoothing, ignore_index)
    return y.reshape(ids.shape), saved


class Gradients(NamedTuple):
    logits: Inexact[Array, "... V"]


def backward(d_y: Inexact[Array, "*rows"], saved: Saved) -> Gradients:
    V = saved.logits.shape[-1]
    rows, flat = saved.logits.reshape(-1, V), saved.ids.reshape(-1)
    counted = _counted(flat, saved.ignore_index, V)
    weight = np.zeros((len(rows), 1), saved.logits.dtype)
    weight[counted, 0] = d_y.reshape(-1)[counted]
    d_logits = np.empty(rows.shape, saved.logits.dtype)

    def block(x: Array, highest: Array, log_sum: Array, weight: Array, d_logits: Array) -> None:
        np.subtract(x, highest, out=d_logits)
        d_logits -= log_sum
        np.exp(d_logits, out=d_logits)  # undoes (2) and (1)
        np.subtract(saved.smoothing / V, d_logits, out=d_logits)
        d_logits *= weight

    over_rows(block, rows, saved.highest.reshape(-1, 1), saved.log_sum.reshape(-1, 1), weight, d_logits)
    d_logits[counted, flat[counted]] += (1 - saved.smoothing) * weight[counted, 0]  # undoes (3)
    return Gradients(d_logits.reshape(saved.logits.shape))


def _counted(ids: Array, ignore_index: int, vocab_size: int) -> Array:
    """The numbers of the rows that count. InputError for an id of theirs outside of the vocabulary."""
    counted = np.flatnonzero(ids != ignore_index)
    outside = ids[counted][(ids[counted] < 0) | (ids[counted] >= vocab_size)]
    if outside.size:
        raise InputError(
            f"token id {outside[0]} is outside the vocabulary of {vocab_size}; ids go from 0 to {vocab_size - 1}"
        )
    return counted
