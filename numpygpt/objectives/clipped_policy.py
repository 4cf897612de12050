"""The clipped objective of a policy, which PPO and GRPO share.

    log_probs       (B, T)   log π of the tokens that were drawn, now
    old_log_probs   (B, T)   the same when they were drawn, constants
    advantages      (B, T)   A: how much better each token was than expected, constants
    weights         (B, T)   1 for tokens of the answer, 0 for prompt and padding
    r               (B, T)   how much more likely a token has become
    loss            ()

Forward (Schulman et al. 2017, arXiv:1707.06347, equation 7), for each token:

    (1)  r = exp(log_probs - old_log_probs)                0 where π now excludes the token
    (2)  y = -min(r A, clip(r, 1 - ε, 1 + ε') A)           ε' = ε unless it is given (Yu et al. 2025, arXiv:2503.14476,
                                                           equation 10); r A is 0 where A is 0, however large r is
    (3)  loss = weighted_mean(y)

Derivation: dr = r dlog_probs. Where the minimum is the clipped term and the clip holds, y is constant:

    d_log_probs = -r A d_y where r A is the minimum, and 0 elsewhere

So a good token (A > 0) stops being pushed at r = 1 + ε', a bad one at r = 1 - ε, and either is pushed back from beyond.
In the first step after the tokens were drawn, r = 1 and this is `reinforce`: d_log_probs = -A d_y.

Saved: r A, where the clip holds, and what weighted_mean saves.
Traps: a maximum for the minimum, or the clip alone: then a bad token that has become likely is never pushed down again;
old log-probabilities that are computed again after a step, so that r is always 1; the log-probabilities of another
temperature than that of the draw.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.objectives.reinforce import checked_advantages
from numpygpt.ops import weighted_mean
from numpygpt.shapes import Array, Bool, Inexact


class Saved(NamedTuple):
    """`is_clipped` is also what a run reports: the share of tokens whose gradient is cut."""

    gain: Inexact[Array, "B T"]
    is_clipped: Bool[Array, "B T"]
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
    """The loss, a NumPy scalar of the log-probabilities' dtype.

    clip, clip_high    ε, and ε' if it is another
    over, normalizer   as in `weighted_mean`

    Raises InputError for a clip outside (0, 1), a clip_high that is not positive, and an advantage of a token that
    counts that is not finite.
    """
    refuse_clips(clip, clip_high)
    A = checked_advantages(advantages, weights, log_probs.dtype)
    ratio = _ratio(log_probs, old_log_probs, np.asarray(weights) != 0)  # (1)
    low, high = 1 - clip, 1 + (clip if clip_high is None else clip_high)
    bounded = np.where(ratio.real < low, low, np.where(ratio.real > high, high, ratio))
    gain, bounded_gain = np.where(A == 0, 0, ratio) * A, bounded * A
    is_clipped = bounded_gain.real < gain.real
    y = -np.where(is_clipped, bounded_gain, gain)  # (2)
    loss, saved = weighted_mean.forward(y, weights, over=over, normalizer=normalizer)  # (3)
    return loss, Saved(gain, is_clipped, saved)


class Gradients(NamedTuple):
    log_probs: Inexact[Array, "B T"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    d_y = weighted_mean.backward(d_loss, saved.weighted_mean).x  # undoes (3)
    return Gradients(np.where(saved.is_clipped, 0, -saved.gain * d_y))  # undoes (2) and (1)


def _ratio(log_probs: Array, old_log_probs: Array, counts: Array) -> Array:
    """π / old π of the tokens that count, and 1 of the others. A ratio that is too large for the dtype is infinite."""
    excluded = counts & (log_probs.real == -np.inf)
    known = counts & ~excluded
    difference = np.where(known, log_probs, 0) - np.asarray(np.where(known, old_log_probs, 0), log_probs.dtype)
    with np.errstate(over="ignore"):
        return np.where(excluded, 0, np.exp(difference))


def refuse_clips(clip: float, clip_high: float | None) -> None:
    """InputError for a clip outside (0, 1), and for a clip_high that is not positive."""
    if not 0 < clip < 1:
        raise InputError(f"clip is {clip!r}; expected a number between 0 and 1")
    if clip_high is not None and not clip_high > 0:
        raise InputError(f"clip_high is {clip_high!r}; expected a positive number")
