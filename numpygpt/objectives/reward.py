"""The objective of a reward model: of two answers, the better one has the higher score (Bradley & Terry 1952).

    chosen     (N)   scores of the better answers
    rejected   (N)   scores of the others
    margin     (N)   how much better the first should score, constants; None: 0
    loss       ()    the mean over the pairs, in nats

The probability that the first is preferred is σ(chosen - rejected) (Ouyang et al. 2022, arXiv:2203.02155, section 3.5;
with a margin, Touvron et al. 2023, arXiv:2307.09288, section 3.2.2):

    (1)  z = chosen - rejected - margin
    (2)  loss = sum(-log σ(z)) / N                 the logistic loss with the label 1

Derivation: each score is in z once, so d_chosen = d_z and d_rejected = -d_z. A constant added to all scores changes
nothing: the scores of a reward model have no zero.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.ops import logistic_loss
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    logistic_loss: logistic_loss.Saved
    normalizer: float


def forward(
    chosen: Inexact[Array, "N"],
    rejected: Inexact[Array, "N"],
    margin: Array | None = None,
    *,
    normalizer: float | None = None,
) -> tuple[Any, Saved]:
    """The loss, a NumPy scalar of the scores' dtype.

    normalizer   what the sum is divided by; None: N. A part of a batch has the number of pairs of the whole
    """
    z = chosen - rejected if margin is None else chosen - rejected - np.asarray(margin, chosen.real.dtype)  # (1)
    losses, saved = logistic_loss.forward(z, np.ones(z.shape))  # (2)
    divisor = normalizer or max(1, len(z))
    return losses.sum() / chosen.dtype.type(divisor), Saved(saved, divisor)


class Gradients(NamedTuple):
    chosen: Inexact[Array, "N"]
    rejected: Inexact[Array, "N"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    count = saved.logistic_loss.probability.shape
    d_losses = np.full(count, d_loss / saved.normalizer, saved.logistic_loss.probability.dtype)
    d_z = logistic_loss.backward(d_losses, saved.logistic_loss).x  # undoes (2)
    return Gradients(d_z, -d_z)  # undoes (1)
