"""The rectified linear unit (Nair & Hinton 2010).

    x   (...)   input
    y   (...)   output

Forward:

    (1)  y = 0 where x <= 0, and x elsewhere

Derivation, for either side:

    d_x = 0 where x <= 0, and d_y elsewhere        at the kink, x = 0, the slope is taken to be 0, as PyTorch does

Saved: where x <= 0.
Trap: "x where x > 0, and 0 elsewhere" turns a NaN into 0, and so hides it.
"""

from typing import NamedTuple

import numpy as np

from numpygpt.shapes import Array, Bool, Inexact


class Saved(NamedTuple):
    flat: Bool[Array, "..."]


def forward(x: Inexact[Array, "*shape"]) -> tuple[Inexact[Array, "*shape"], Saved]:
    flat = x.real <= 0
    return np.where(flat, 0, x), Saved(flat)  # (1)


class Gradients(NamedTuple):
    x: Inexact[Array, "..."]


def backward(d_y: Inexact[Array, "*shape"], saved: Saved) -> Gradients:
    return Gradients(np.where(saved.flat, 0, d_y))  # undoes (1)
