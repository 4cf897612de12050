"""REINFORCE with a baseline: a token becomes more likely if the answer was better than expected, else less.

    log_probs    (B, T)   log π of the tokens that were drawn, by the policy π that drew them
    advantages   (B, T)   A: how much better each token was than a baseline, constants (`numpygpt.training.advantages`)
    weights      (B, T)   1 for tokens of the answer, 0 for prompt and padding
    loss         ()

Forward:

    (1)  y = -A log π
    (2)  loss = weighted_mean(y)

The value of the loss says nothing; its gradient does. What is to grow is the expected reward J = E[R] over answers that
π draws. With ∇π = π ∇ log π (Williams 1992, "Simple statistical gradient-following algorithms for connectionist
reinforcement learning", Machine Learning 8)

    ∇J = sum over answers of R ∇π = E[R ∇ log π]
    E[∇ log π] = sum over answers of ∇π = ∇1 = 0

so that any baseline b which does not depend on the token may be taken from R: E[(R - b) ∇ log π] = ∇J. It changes the
variance alone. The mean reward of a batch, of the other answers to the same prompt, and a value head are baselines.

Derivation: A is a constant, so

    d_log_probs = -A d_y

Saved: A and what weighted_mean saves.
Traps: the sign; a gradient through the reward or the baseline; a second step on the same answers, which another policy
than the present one drew: then it is `clipped_policy` whose gradient is right, and at its first step it is this one.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.ops import weighted_mean
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    advantages: Array
    weighted_mean: weighted_mean.Saved


def forward(
    log_probs: Inexact[Array, "B T"],
    advantages: Array,
    weights: Array,
    *,
    over: str = "tokens",
    normalizer: float | None = None,
) -> tuple[Any, Saved]:
    """The loss, a NumPy scalar of the log-probabilities' dtype. `over` and `normalizer` are `weighted_mean`'s.

    Raises InputError for an advantage of a token that counts that is not finite.
    """
    A = checked_advantages(advantages, weights, log_probs.dtype)
    y = -A * np.where(A == 0, 0, log_probs)  # (1)
    loss, saved = weighted_mean.forward(y, weights, over=over, normalizer=normalizer)  # (2)
    return loss, Saved(A, saved)


def checked_advantages(advantages: Array, weights: Array, dtype: Any) -> Array:
    """The advantages in this dtype, 0 for tokens that do not count. InputError if one is not finite."""
    A = np.asarray(np.where(np.asarray(weights) != 0, advantages, 0), dtype)
    wrong = np.argwhere(~np.isfinite(A))
    if wrong.size:
        row, column = wrong[0]
        raise InputError(
            f"the advantage of token {column} of answer {row} is {A[row, column].real}; expected a finite number"
        )
    return A


class Gradients(NamedTuple):
    log_probs: Inexact[Array, "B T"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    d_y = weighted_mean.backward(d_loss, saved.weighted_mean).x  # undoes (2)
    return Gradients(-saved.advantages * d_y)  # undoes (1)
