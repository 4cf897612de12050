"""The logistic loss of a score with a label between 0 and 1: binary cross-entropy, before any mean.

    x        (...)   scores; σ(x) = 1 / (1 + exp(-x)) is the probability of "yes"
    labels   (...)   t, constants in [0, 1]: 1 for "yes", 0 for "no", or a probability
    y        (...)   the loss, in nats

Forward:

    (1)  y = -t log σ(x) - (1 - t) log σ(-x)
           = log(1 + exp(x)) - t x
           = log(1 + exp(-|x|)) + c x         c = 1 - t where x >= 0, and -t elsewhere; c x is 0 where c is 0

The last form neither overflows nor loses what is small, and gives 0 for an infinite score that is right.

Derivation, from the second line, as d log(1 + exp(x)) / dx = σ(x), and σ(x) + σ(-x) = 1:

    d_x = d_y (σ(x) - t) = d_y ((1 - t) σ(x) - t σ(-x))

A pair in which the first answer is the better one has the loss of x = score₁ - score₂ with t = 1 (Bradley & Terry
1952), and with t = 1 - ε if a share ε of the pairs is the wrong way round.

Saved: σ(x), σ(-x) and the labels.
Traps: σ(x) - 1 for a score that is right by far is what is left of 1 - 1, in float32 nothing from x = 17 on; log(σ(x))
for x = -1000 is log(0); max(x, 0) - t x for an infinite x and t = 1 is inf - inf.
"""

from typing import NamedTuple

import numpy as np

from numpygpt.ops import sigmoid
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    yes: Inexact[Array, "..."]
    no: Inexact[Array, "..."]
    labels: Inexact[Array, "..."]


def forward(x: Inexact[Array, "*shape"], labels: Array) -> tuple[Inexact[Array, "*shape"], Saved]:
    """The labels are booleans or numbers (...)."""
    t = np.asarray(labels, x.dtype)
    negative = x.real < 0
    size = np.where(negative, -x, x)  # |x|, analytic on either side of 0
    c = np.where(negative, -t, 1 - t)
    y = np.log1p(np.exp(-size)) + c * np.where(c == 0, 0, x)  # (1)
    (yes, _), (no, _) = sigmoid.forward(x), sigmoid.forward(-x)
    return y, Saved(yes, no, t)


class Gradients(NamedTuple):
    x: Inexact[Array, "..."]


def backward(d_y: Inexact[Array, "*shape"], saved: Saved) -> Gradients:
    yes, no, t = saved
    return Gradients(d_y * ((1 - t) * yes - t * no))  # undoes (1)
