"""Dropout (Srivastava et al. 2014, JMLR 15), in the inverted form that needs no correction at evaluation.

    x      (...)   input
    keep   (...)   m, booleans: which elements stay; None keeps all and changes nothing
    y      (...)   output

Forward, elementwise, with p = drop_rate:

    (1)  y = x * m / (1 - p)                       so that the expectation of y is x

Derivation, from dL = <d_y, dy> with dy = dx * m / (1 - p):

    d_x = d_y * m / (1 - p)

Saved: the mask and the rate.
The mask comes in as an argument, drawn by `numpygpt.random.masks`: so the operation has no randomness of its own, a
second backward sees the same mask, and PyTorch can be given the same one.
Traps: scaling by p for 1 - p; one mask used at two sites; a mask left alive in evaluation.
"""

from typing import NamedTuple

import numpy as np

from numpygpt.parallel import over_rows
from numpygpt.shapes import Array, Bool, Inexact


class Saved(NamedTuple):
    keep: Bool[Array, "..."] | None
    drop_rate: float


def forward(
    x: Inexact[Array, "*shape"], keep: Bool[Array, "*shape"] | None, *, drop_rate: float
) -> tuple[Inexact[Array, "*shape"], Saved]:
    return _kept_and_scaled(x, keep, drop_rate), Saved(keep, drop_rate)  # (1)


class Gradients(NamedTuple):
    x: Inexact[Array, "..."]


def backward(d_y: Inexact[Array, "*shape"], saved: Saved) -> Gradients:
    return Gradients(_kept_and_scaled(d_y, *saved))  # undoes (1), which is its own mirror


def _kept_and_scaled(x: Array, keep: Array | None, drop_rate: float) -> Array:
    if keep is None:
        return x
    y = np.empty(x.shape, x.dtype)

    def block(x: Array, keep: Array, y: Array) -> None:
        np.multiply(x, keep, out=y)
        y *= 1 / (1 - drop_rate)

    over_rows(block, x, keep, y)
    return y
