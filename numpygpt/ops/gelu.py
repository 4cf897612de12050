"""GELU in its tanh form (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2), as GPT-2 uses it.

    x   (...)   input
    y   (...)   output

Forward, elementwise, with the constants C = sqrt(2/π) and A = 0.044715:

    (1)  u = C (x + A x³)
    (2)  s = (1 + tanh(u)) / 2                     the share of x that passes
    (3)  y = x * s

Derivation, from dL = <d_y, dy>; every product is elementwise, and the derivative of tanh is 1 - tanh², which is
4 s * (1 - s) because tanh(u) = 2 s - 1:

    dy = s * dx + x * ds
    ds = 2 s * (1 - s) * du
    du = C (1 + 3 A x²) * dx
    d_x = d_y * (s + x * 2 s * (1 - s) * C (1 + 3 A x²))

Saved: x, and s because a tanh costs more than the memory that holds it.
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
    s: Inexact[Array, "..."]


def forward(x: Inexact[Array, "*rows F"]) -> tuple[Inexact[Array, "*rows F"], Saved]:
    y, s = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)

    def block(x: Array, s: Array, y: Array) -> None:
        u = C * (x + A * x * x * x)  # (1)
        np.tanh(u, out=s)
        s += 1
        s *= 0.5  # (2)
        np.multiply(x, s, out=y)  # (3)

    over_rows(block, x, s, y)
    return y, Saved(x, s)


class Gradients(NamedTuple):
    x: Inexact[Array, "..."]


def backward(d_y: Inexact[Array, "*rows F"], saved: Saved) -> Gradients:
    d_x = np.empty(d_y.shape, d_y.dtype)

    def block(d_y: Array, x: Array, s: Array, d_x: Array) -> None:
        ds_dx = s * (1 - s) * (2 * C * (1 + 3 * A * x * x))  # undoes (2) and (1)
        np.multiply(d_y, s + x * ds_dx, out=d_x)  # undoes (3), through both factors

    over_rows(block, d_y, *saved, d_x)
    return Gradients(d_x)
