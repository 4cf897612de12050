"""The sigmoid linear unit, also called swish.

It is the SiLU of Hendrycks & Gimpel (2016, arXiv:1606.08415, section 2) and the Swish-1 of Ramachandran et al. (2017,
arXiv:1710.05941).

    x   (...)   input
    s   (...)   σ(x)
    y   (...)   output

Forward:

    (1)  s = σ(x)
    (2)  y = x s

Derivation, with ds = s (1 - s) dx:

    dy = s dx + x ds
    d_x = d_y s (1 + x (1 - s))

Saved: x and s.
Trap: the slope is not s: it is above 1 from x = 1.28 on, and negative below x = -1.28.
"""

from typing import NamedTuple

from numpygpt.ops import sigmoid
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    x: Inexact[Array, "..."]
    s: Inexact[Array, "..."]


def forward(x: Inexact[Array, "*shape"]) -> tuple[Inexact[Array, "*shape"], Saved]:
    s, _ = sigmoid.forward(x)  # (1)
    return x * s, Saved(x, s)  # (2)


class Gradients(NamedTuple):
    x: Inexact[Array, "..."]


def backward(d_y: Inexact[Array, "*shape"], saved: Saved) -> Gradients:
    x, s = saved
    return Gradients(d_y * s * (1 + x * (1 - s)))  # undoes (2) and (1)
