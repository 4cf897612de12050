"""The logistic function.

    x   (...)   input
    y   (...)   output, in (0, 1)

Forward:

    (1)  y = 1 / (1 + exp(-x))         for x >= 0
           = exp(x) / (1 + exp(x))     for x < 0: the same, and no exponential overflows

Derivation, for either line:

    dy = y (1 - y) dx
    d_x = d_y y (1 - y)

Saved: y.
Trap: 1 - y loses its digits as y comes near 1; y (1 - y) is then as small as y's last place, which is what it should
be, except for its relative error.
"""

from typing import NamedTuple

import numpy as np

from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    y: Inexact[Array, "..."]


def forward(x: Inexact[Array, "*shape"]) -> tuple[Inexact[Array, "*shape"], Saved]:
    negative = x.real < 0
    small = np.exp(np.where(negative, x, -x))
    y = np.where(negative, small, 1) / (1 + small)  # (1)
    return y, Saved(y)


class Gradients(NamedTuple):
    x: Inexact[Array, "..."]


def backward(d_y: Inexact[Array, "*shape"], saved: Saved) -> Gradients:
    return Gradients(d_y * saved.y * (1 - saved.y))  # undoes (1)
