"""GELU in its tanh form (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2), as GPT-2 uses it.

    x   (...)   input
    y   (...)   output

Forward, elementwise, with the constants C = sqrt(2/π) and A = 0.044715:

    (1)  u = C (x + A x³)
    (2)  t = tanh(u)
    (3)  y = x * (1 + t) / 2

Derivation, from dL = <d_y, dy>; the derivative of tanh is 1 - tanh², and every product is elementwise:

    dy = (1 + t)/2 * dx + x/2 * dt
    dt = (1 - t²) * du
    du = C (1 + 3 A x²) * dx
    d_x = d_y * ((1 + t)/2 + x/2 * (1 - t²) * C (1 + 3 A x²))

Saved: x, and t because a tanh costs more than the memory that holds it.
Traps: the erf form differs from this one by up to 4.7e-4, and its slope by up to 8.7e-4; truncated constants pass a
loose check.
"""

import math
from typing import NamedTuple

import numpy as np

from numpygpt.parallel import over_rows
from numpygpt.shapes import Array, Inexact

C = math.sqrt(2 / math.pi)
A = 0.044715


class Saved(NamedTuple):
    x: Inexact[Array, "..."]
    t: Inexact[Array, "..."]


def forward(x: Inexact[Array, "*rows F"]) -> tuple[Inexact[Array, "*rows F"], Saved]:
    y, t = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)

    def block(x: Array, t: Array, y: Array) -> None:
        u = C * (x + A * x * x * x)  # (1)
        np.tanh(u, out=t)  # (2)
        np.multiply(0.5 * x, 1 + t, out=y)  # (3)

    over_rows(block, x, t, y)
    return y, Saved(x, t)


class Gradients(NamedTuple):
    x: Inexact[Array, "..."]


def backward(d_y: Inexact[Array, "*rows F"], saved: Saved) -> Gradients:
    d_x = np.empty(d_y.shape, d_y.dtype)

    def block(d_y: Array, x: Array, t: Array, d_x: Array) -> None:
        dy_dx = 0.5 * (1 + t)  # undoes (3) through its factor x
        dy_dx += 0.5 * x * (1 - t * t) * C * (1 + 3 * A * x * x)  # undoes (3) through t, (2) and (1)
        np.multiply(d_y, dy_dx, out=d_x)

    over_rows(block, d_y, *saved, d_x)
    return Gradients(d_x)
