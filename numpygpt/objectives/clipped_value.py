"""The objective of a value head: the return that is still to come from each token, learned in steps of limited size.

    values       (B, T)   v: what the head expects now
    old_values   (B, T)   what it expected when the tokens were drawn, constants
    returns      (B, T)   R: what came, constants (`numpygpt.training.advantages`)
    weights      (B, T)   1 for tokens of the answer, 0 for prompt and padding
    loss         ()

Forward, for each token, as OpenAI's baselines have it beside PPO's policy:

    (1)  c = old + clip(v - old, -ε, ε)
    (2)  y = max((v - R)², (c - R)²) / 2
    (3)  loss = weighted_mean(y)

Derivation: where the first is the maximum, dy = (v - R) dv. Where the second is, c moves with v inside the clip (and is
then v itself) and is constant outside:

    d_values = (v - R) d_y where (v - R)² is the maximum, and 0 elsewhere
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.ops import weighted_mean
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    error: Inexact[Array, "B T"]
    is_clipped: Array
    weighted_mean: weighted_mean.Saved


def forward(
    values: Inexact[Array, "B T"],
    old_values: Array,
    returns: Array,
    weights: Array,
    *,
    clip: float = 0.2,
    over: str = "tokens",
    normalizer: float | None = None,
) -> tuple[Any, Saved]:
    """The loss, a NumPy scalar. `over` and `normalizer` are `weighted_mean`'s."""
    old, R = (np.asarray(array, values.real.dtype) for array in (old_values, returns))
    step = values - old
    bounded = old + np.where(step.real < -clip, -clip, np.where(step.real > clip, clip, step))  # (1)
    error, bounded_error = values - R, bounded - R
    is_clipped = (bounded_error.real**2) > (error.real**2)
    squares = np.where(is_clipped, bounded_error, error) ** 2
    loss, saved = weighted_mean.forward(squares / 2, weights, over=over, normalizer=normalizer)  # (2), (3)
    return loss, Saved(error, is_clipped, saved)


class Gradients(NamedTuple):
    values: Inexact[Array, "B T"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    d_y = weighted_mean.backward(d_loss, saved.weighted_mean).x  # undoes (3)
    return Gradients(np.where(saved.is_clipped, 0, saved.error * d_y))  # undoes (2) and (1)
