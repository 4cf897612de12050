"""The clipped objective of a policy, which PPO and GRPO share.

    log_probs       (B, T)   log π of the tokens that were drawn, now
    old_log_probs   (B, T)   the same when they were drawn, constants
    advantages      (B, T)   A: how much better each token was than expected, constants
    weights         (B, T)   1 for tokens of the answer, 0 for prompt and padding
    loss            ()

Forward (Schulman et al. 2017, arXiv:1707.06347, equation 7), for each token:

    (1)  r = exp(log_probs - old_log_probs)
    (2)  y = -min(r A, clip(r, 1 - ε, 1 + ε') A)           ε' = ε unless it is given (Yu et al. 2025, arXiv:2503.14476)
    (3)  loss = weighted_mean(y)

Derivation: dr = r dlog_probs. Where the minimum is the clipped term and the clip holds, y is constant:

    d_log_probs = -r A d_y where r A is the minimum, and 0 elsewhere

So a good token (A > 0) stops being pushed at r = 1 + ε', a bad one at r = 1 - ε, and either is pushed back from beyond.
In the first step after the tokens were drawn, r = 1 and this is REINFORCE: d_log_probs = -A d_y.

Trap: a maximum for the minimum, or the clip alone: then a bad token that has become likely is never pushed down again.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.ops import weighted_mean
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    """`is_clipped` is also what a run reports: the share of tokens whose gradient is cut."""

    ratio: Inexact[Array, "B T"]
    advantages: Array
    is_clipped: Array
    weighted_mean: weighted_mean.Saved


def forward(
    log_probs: Inexact[Array, "B T"],
    old_log_probs: Array,
    advantages: Array,
    weights: Array,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    over: str = "tokens",
    normalizer: float | None = None,
) -> tuple[Any, Saved]:
    """The loss, a NumPy scalar. `over` and `normalizer` are `weighted_mean`'s.

    Raises InputError for a clip outside (0, 1), and for advantages of tokens that count that are not finite.
    """
    if not 0 < clip < 1 or not (clip_high is None or clip_high > 0):
        raise InputError(f"clip is {clip!r} and clip_high {clip_high!r}; expected numbers between 0 and 1")
    counts = np.asarray(weights) != 0
    if not np.isfinite(np.asarray(advantages)[counts]).all():
        raise InputError("the advantage of a token is not finite; is a reward NaN?")
    A = np.where(counts, advantages, 0).astype(log_probs.real.dtype)
    difference = np.where(counts, log_probs, 0) - np.where(counts, old_log_probs, 0)
    ratio = np.exp(difference)  # (1)
    low, high = 1 - clip, 1 + (clip if clip_high is None else clip_high)
    bounded = np.where(ratio.real < low, low, np.where(ratio.real > high, high, ratio))
    is_clipped = (bounded * A).real < (ratio * A).real
    y = -np.where(is_clipped, bounded * A, ratio * A)  # (2)
    loss, saved = weighted_mean.forward(y, weights, over=over, normalizer=normalizer)  # (3)
    return loss, Saved(ratio, A, is_clipped, saved)


class Gradients(NamedTuple):
    log_probs: Inexact[Array, "B T"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    d_y = weighted_mean.backward(d_loss, saved.weighted_mean).x  # undoes (3)
    return Gradients(np.where(saved.is_clipped, 0, -saved.ratio * saved.advantages * d_y))  # undoes (2) and (1)
