"""GELU in its exact form (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2), with the normal distribution's Φ.

    x   (...)   input
    y   (...)   output

Forward, elementwise, with the error function erf(u) = 2/sqrt(π) times the integral of exp(-t²) from 0 to u:

    (1)  u = x / sqrt(2)
    (2)  s = (1 + erf(u)) / 2                      Φ(x), the share of x that passes
    (3)  y = x * s

Derivation, from dL = <d_y, dy>; every product is elementwise, and the derivative of erf is 2/sqrt(π) exp(-u²) by its
definition:

    dy = s * dx + x * ds
    ds = 1/sqrt(π) exp(-u²) * du
    du = 1/sqrt(2) dx
    d_x = d_y * (s + x * 1/sqrt(2 π) exp(-x²/2))

What follows x in the last line is the density of the normal distribution, the derivative of Φ.

Saved: x, and s because erf costs more than the memory that holds it.
Traps: a forgotten sqrt(2), because erf is not Φ; the tanh form (`numpygpt.ops.gelu`) differs by up to 4.7e-4.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.parallel import over_rows
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    x: Inexact[Array, "..."]
    s: Inexact[Array, "..."]


def forward(x: Inexact[Array, "*rows F"]) -> tuple[Inexact[Array, "*rows F"], Saved]:
    erf = error_function()
    y, s = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)

    def block(x: Array, s: Array, y: Array) -> None:
        u = x * (1 / math.sqrt(2))  # (1)
        erf(u, out=s)
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
        ds_dx = np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))  # undoes (2) and (1)
        np.multiply(d_y, s + x * ds_dx, out=d_x)  # undoes (3), through both factors

    over_rows(block, d_y, *saved, d_x)
    return Gradients(d_x)


def error_function() -> Callable[..., Array]:
    """SciPy's erf, which takes float32, float64 and complex numbers. InputError if SciPy is not installed."""
    try:
        from scipy.special import erf
    except ImportError as error:
        raise InputError("SciPy is not installed, and GELU's exact form needs its erf: pip install scipy") from error
    return erf
