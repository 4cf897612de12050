"""The rectified linear unit (Nair & Hinton 2010).

    x   (...)   input
    y   (...)   output

Forward:

    (1)  y = x where x > 0, and 0 elsewhere

Derivation, for either side:

    d_x = d_y where x > 0, and 0 elsewhere         at the kink, x = 0, the slope is taken to be 0, as PyTorch does

Saved: where x > 0.
"""

from typing import NamedTuple

import numpy as np

from numpygpt.shapes import Array, Bool, Inexact


class Saved(NamedTuple):
    positive: Bool[Array, "..."]


def forward(x: Inexact[Array, "*shape"]) -> tuple[Inexact[Array, "*shape"], Saved]:
    positive = x.real > 0
    return np.where(positive, x, 0), Saved(positive)  # (1)


class Gradients(NamedTuple):
    x: Inexact[Array, "..."]


def backward(d_y: Inexact[Array, "*shape"], saved: Saved) -> Gradients:
    return Gradients(np.where(saved.positive, d_y, 0))  # undoes (1)
