"""Softmax over the last axis.

    x   (..., S)   scores
    y   (..., S)   probabilities; each row sums to 1

Forward, for each row:

    (1)  e = exp(x - max(x))                       the shift cancels in (2) and keeps exp from overflowing
    (2)  y = e / sum(e)

Derivation, from dL = <d_y, dy>; the shift by max(x) drops out because y does not depend on it:

    log y = x - log(sum(exp(x)))
    dy = y * d(log y) = y * (dx - sum(y * dx))
    <d_y, y * dx> - <d_y, y * sum(y * dx)> = <d_y * y, dx> - sum(d_y * y) <y, dx>
    d_x = y * (d_y - sum(d_y * y))

Each row of d_x sums to 0, because adding a constant to x changes nothing.

A row in which every score is -inf chooses among nothing: its probabilities are all 0, and so is its gradient, which the
formula gives by itself (PyTorch gives NaN). Such a row is a query of attention that may see no key.

Saved: y alone.
Traps: without the shift a score of 100 overflows in float32; a constant d_y gives d_x = 0 and so can check nothing.
"""

from typing import NamedTuple

import numpy as np

from numpygpt.parallel import over_rows
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    y: Inexact[Array, "... S"]


def forward(x: Inexact[Array, "*rows S"]) -> tuple[Inexact[Array, "*rows S"], Saved]:
    y = np.empty(x.shape, x.dtype)

    def block(x: Array, y: Array) -> None:
        highest = x.real.max(axis=-1, keepdims=True)
        highest[highest == -np.inf] = 0  # -inf - -inf would be NaN
        np.subtract(x, highest, out=y)
        np.exp(y, out=y)  # (1)
        total = y.sum(axis=-1, keepdims=True)
        total[total == 0] = 1  # of a row of -inf alone
        y /= total  # (2)

    over_rows(block, x, y)
    return y, Saved(y)


class Gradients(NamedTuple):
    x: Inexact[Array, "... S"]


def backward(d_y: Inexact[Array, "*rows S"], saved: Saved) -> Gradients:
    d_x = np.empty(d_y.shape, d_y.dtype)

    def block(d_y: Array, y: Array, d_x: Array) -> None:
        np.multiply(d_y, y, out=d_x)
        d_x -= y * d_x.sum(axis=-1, keepdims=True)  # undoes (2) and (1)

    over_rows(block, d_y, saved.y, d_x)
    return Gradients(d_x)
