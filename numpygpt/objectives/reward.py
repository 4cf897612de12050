"""The objective of a reward model: of two answers, the better one has the higher score.

    chosen     (N)   scores of the better answers
    rejected   (N)   scores of the others
    margin     (N)   how much better the first should score, constants; None: 0
    z          (N)   by how much it is better, beyond that
    loss       ()    the mean over the pairs, in nats

Forward. The first answer is preferred with the probability σ(chosen - rejected) (Bradley & Terry 1952, Biometrika 39),
and the loss is its negative logarithm (Ouyang et al. 2022, arXiv:2203.02155, equation 1; with a margin, Touvron et al.
2023, arXiv:2307.09288, equation 2):

    (1)  z = chosen - rejected - margin
    (2)  losses = -log σ(z)                          the logistic loss with the label 1
    (3)  loss = sum(losses) / N

Derivation. Each score is in z once, and the logistic loss has the slope σ(z) - 1 = -σ(-z):

    d_chosen = -d_loss σ(-z) / N
    d_rejected = -d_chosen

Saved: what the logistic loss saves, and N.
Traps: a pair the other way round trains a model that prefers the worse answer, with a loss that falls all the same; a
constant added to all scores changes nothing, so the scores have no zero of their own, and whoever uses them as rewards
chooses one.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.ops import logistic_loss
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    logistic_loss: logistic_loss.Saved
    divisor: float


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
    z = chosen - rejected if margin is None else chosen - rejected - np.asarray(margin, chosen.dtype)  # (1)
    losses, saved = logistic_loss.forward(z, np.ones(z.shape))  # (2)
    divisor = float((len(z) if normalizer is None else normalizer) or 1)
    loss = losses.sum() / chosen.dtype.type(divisor)  # (3)
    return loss, Saved(saved, divisor)


class Gradients(NamedTuple):
    chosen: Inexact[Array, "N"]
    rejected: Inexact[Array, "N"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    yes = saved.logistic_loss.yes
    d_losses = np.full(yes.shape, d_loss / saved.divisor, yes.dtype)  # undoes (3)
    d_z = logistic_loss.backward(d_losses, saved.logistic_loss).x  # undoes (2)
    return Gradients(d_z, -d_z)  # undoes (1)
