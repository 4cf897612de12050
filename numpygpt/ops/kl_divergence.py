"""The Kullback-Leibler divergence between two rows of logits: how far the second distribution is from the first.

    first     (..., V)   logits a, of the distribution p = softmax(a)
    second    (..., V)   logits b, of q = softmax(b)
    y         (...)      KL(p || q), in nats, 0 or more

Forward, for each row:

    (1)  log p = (a - max(a)) - log(sum(exp(a - max(a)))), and log q of b in the same way
    (2)  y = sum(p * (log p - log q))              a term with p = 0 is 0, whatever log q is

The other direction, KL(q || p), is a call with the arguments exchanged. With p a teacher and q a student, KL(p || q)
asks the student to cover all that the teacher may say, and KL(q || p) to say nothing that the teacher would not (Gu et
al. 2024, arXiv:2306.08543, section 2.1).

Derivation. For q, p is constant, and -sum(p * d(log q)) = -(sum(p * db) - sum(q * db)):

    d_b = d_y (q - p)

For p, with s = log p - log q, dp = p * (da - sum(p * da)) and sum(dp) = 0:

    dy = sum(dp * s) + sum(p * d(log p)) = sum(dp * s) + 0
    d_a = d_y p * (s - y)                          since sum(p * s) = y; 0 where p = 0

Where q excludes a token (q = 0) that p does not, y is infinite, and the gradient of the first logits is not a number.

Saved: log p, log q and y.
Traps: where p = 0, log p = -inf and the product is 0 · inf = NaN, unless the term is left out, in the backward too; d_a
without "- y": the gradient of logits must sum to 0 in each row, because a constant added to them changes nothing.
"""

from typing import NamedTuple

import numpy as np

from numpygpt.parallel import over_rows
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    log_p: Inexact[Array, "... V"]
    log_q: Inexact[Array, "... V"]
    y: Inexact[Array, "..."]


def forward(
    first: Inexact[Array, "*rows V"], second: Inexact[Array, "*rows V"]
) -> tuple[Inexact[Array, "*rows"], Saved]:
    dtype = np.result_type(first, second)
    log_p, log_q = (np.empty(first.shape, array.dtype) for array in (first, second))
    y = np.empty((*first.shape[:-1], 1), dtype)

    def block(first: Array, second: Array, log_p: Array, log_q: Array, y: Array) -> None:
        _log_softmax(first, log_p)  # (1)
        _log_softmax(second, log_q)
        p = np.exp(log_p)
        y[...] = (p * _difference(p, log_p, log_q)).sum(axis=-1, keepdims=True)  # (2)

    over_rows(block, first, second, log_p, log_q, y)
    return y[..., 0], Saved(log_p, log_q, y[..., 0])


class Gradients(NamedTuple):
    first: Inexact[Array, "... V"]
    second: Inexact[Array, "... V"]


def backward(d_y: Inexact[Array, "*rows"], saved: Saved) -> Gradients:
    log_p, log_q, y = saved
    d_first, d_second = np.empty(log_p.shape, log_p.dtype), np.empty(log_q.shape, log_q.dtype)

    def block(d_y: Array, log_p: Array, log_q: Array, y: Array, d_first: Array, d_second: Array) -> None:
        p = np.exp(log_p)
        d_first[...] = d_y * p * (_difference(p, log_p, log_q) - y)  # undoes (2) and (1)
        d_second[...] = d_y * (np.exp(log_q) - p)

    over_rows(block, d_y[..., np.newaxis], log_p, log_q, y[..., np.newaxis], d_first, d_second)
    return Gradients(d_first, d_second)


def _log_softmax(x: Array, out: Array) -> None:
    np.subtract(x, x.real.max(axis=-1, keepdims=True), out=out)
    out -= np.log(np.exp(out).sum(axis=-1, keepdims=True))


def _difference(p: Array, log_p: Array, log_q: Array) -> Array:
    """log p - log q; 0 where p is 0."""
    excluded = p == 0
    return np.where(excluded, 0, log_p) - np.where(excluded, 0, log_q)
