"""The objective of a value head: the return that is still to come from each token, learned in steps of limited size.

    values       (B, T)   v: what the head expects now
    old_values   (B, T)   what it expected when the tokens were drawn, constants
    returns      (B, T)   R: what came, constants (`numpygpt.training.advantages`)
    weights      (B, T)   1 for tokens of the answer, 0 for prompt and padding
    loss         ()

Forward, for each token, as OpenAI's baselines have it beside PPO's policy (ppo2's model.py; Huang et al. 2022, "The 37
Implementation Details of Proximal Policy Optimization", detail 9):

    (1)  c = old + clip(v - old, -ε, ε)
    (2)  y = max((v - R)², (c - R)²) / 2
    (3)  loss = weighted_mean(y)

Derivation. Inside the clip c is v, and the two squares are the same. Outside, c is constant:

    d_values = (v - R) d_y where (v - R)² is the maximum, and 0 elsewhere

So a head that has moved by ε towards the return stops, and one that has moved away from it is brought back.

Saved: v - R, where the clip holds, and what weighted_mean saves.
Traps: a minimum for the maximum, which rewards what is far; the clip alone, without the maximum: a head that has moved
away by more than ε then has no gradient.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.ops import weighted_mean
from numpygpt.shapes import Array, Bool, Inexact


class Saved(NamedTuple):
    error: Inexact[Array, "B T"]
    is_clipped: Bool[Array, "B T"]
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
    """The loss, a NumPy scalar of the values' dtype. `over` and `normalizer` are `weighted_mean`'s.

    Raises InputError for a clip that is not positive.
    """
    refuse_clip(clip)
    counts = np.asarray(weights) != 0
    v, old, target = (np.where(counts, array, 0).astype(values.dtype) for array in (values, old_values, returns))
    step = v - old
    bounded = old + np.where(step.real < -clip, -clip, np.where(step.real > clip, clip, step))  # (1)
    error, bounded_error = v - target, bounded - target
    is_clipped = (abs(step.real) > clip) & (abs(bounded_error.real) > abs(error.real))
    y = np.where(is_clipped, bounded_error, error) ** 2 / 2  # (2)
    loss, saved = weighted_mean.forward(y, weights, over=over, normalizer=normalizer)  # (3)
    return loss, Saved(error, is_clipped, saved)


class Gradients(NamedTuple):
    values: Inexact[Array, "B T"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    d_y = weighted_mean.backward(d_loss, saved.weighted_mean).x  # undoes (3)
    return Gradients(np.where(saved.is_clipped, 0, saved.error * d_y))  # undoes (2) and (1)


def refuse_clip(clip: float) -> None:
    """InputError for a clip that is not positive."""
    if not clip > 0:
        raise InputError(f"the clip of the values is {clip!r}; expected a positive number")
