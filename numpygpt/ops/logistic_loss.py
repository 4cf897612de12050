"""The logistic loss of a score with a label between 0 and 1: binary cross-entropy, before any mean.

    x        (...)   scores; σ(x) = 1 / (1 + exp(-x)) is the probability of "yes"
    labels   (...)   t, constants in [0, 1]: 1 for "yes", 0 for "no", or a probability
    y        (...)   the loss, in nats

Forward:

    (1)  y = -t log σ(x) - (1 - t) log σ(-x)
           = log(1 + exp(x)) - t x
           = max(x, 0) - t x + log(1 + exp(-|x|))       the form that neither overflows nor loses small values

Derivation, from the second line, as d log(1 + exp(x)) / dx = σ(x):

    d_x = d_y (σ(x) - t)

A pair in which the first answer is the better one has the loss of x = score₁ - score₂ with t = 1 (Bradley & Terry
1952), and with t = 1 - ε if a share ε of the pairs is the wrong way round.

Saved: σ(x) and the labels.
Trap: log(σ(x)) for x = -1000 is log(0).
"""

from typing import NamedTuple

import numpy as np

from numpygpt.ops import sigmoid
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    probability: Inexact[Array, "..."]
    labels: Array


def forward(x: Inexact[Array, "*shape"], labels: Array) -> tuple[Inexact[Array, "*shape"], Saved]:
    """The labels are booleans or numbers (...)."""
    t = np.asarray(labels, x.real.dtype)
    size = np.where(x.real < 0, -x, x)  # |x|, analytic on either side of 0
    y = np.where(x.real < 0, 0, x) - t * x + np.log1p(np.exp(-size))  # (1)
    probability, _ = sigmoid.forward(x)
    return y, Saved(probability, t)


class Gradients(NamedTuple):
    x: Inexact[Array, "..."]


def backward(d_y: Inexact[Array, "*shape"], saved: Saved) -> Gradients:
    return Gradients(d_y * (saved.probability - saved.labels))  # undoes (1)
