"""GRPO: the clipped objective with the advantages of a group of answers, held near a reference.

    log_probs             (B, T)   log π of the tokens that were drawn, now
    old_log_probs         (B, T)   the same when they were drawn, constants
    reference_log_probs   (B, T)   log ρ of the same tokens by the reference ρ, constants
    advantages            (B, T)   A of each token, constants: that of its answer in its group (`of_groups` of
                                   `numpygpt.training.advantages`)
    weights               (B, T)   1 for tokens of the answer, 0 for prompt and padding
    loss                  ()

Forward (Shao et al. 2024, arXiv:2402.03300, equations 3 and 4):

    (1)  policy = clipped_policy(log_probs, old_log_probs, A)
    (2)  k = kl_estimate(log_probs, reference_log_probs)        k3 unless another is asked for
    (3)  loss = policy + β weighted_mean(k)                     with β = 0, policy alone, however large k is

The mean is, by `over` and `normalizer`,

    "sequences"   over the tokens of an answer, then over answers: GRPO. A token of a long answer counts less
    "tokens"      over all tokens: DAPO (Yu et al. 2025, arXiv:2503.14476, equation 8)
    "sum" with the normalizer answers times longest answer allowed: a constant, so that no length is favored (Liu et al.
                  2025, arXiv:2503.20783, section 3.2); with the advantages of `of_groups(..., scale=False)`, Dr. GRPO

Derivation: log_probs is in both terms, and its gradient is the sum of theirs.

Saved: what the three save, and β.
Trap: k3's gradient is that of the other direction of the divergence (`kl_estimate`); "k2" has that of KL(π || ρ).
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.objectives import clipped_policy
from numpygpt.ops import kl_estimate, weighted_mean
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    clipped_policy: clipped_policy.Saved
    kl_estimate: kl_estimate.Saved
    weighted_mean: weighted_mean.Saved
    beta: float


def forward(
    log_probs: Inexact[Array, "B T"],
    old_log_probs: Array,
    reference_log_probs: Array,
    advantages: Array,
    weights: Array,
    *,
    beta: float = 0.04,
    kind: str = "k3",
    clip: float = 0.2,
    clip_high: float | None = None,
    over: str = "sequences",
    normalizer: float | None = None,
) -> tuple[Any, Saved]:
    """The loss, a NumPy scalar of the log-probabilities' dtype.

    beta               β, 0 or more
    kind               of the estimate of the divergence, as in `kl_estimate`
    clip, clip_high    as in `clipped_policy`
    over, normalizer   as in `weighted_mean`

    Raises InputError as those do, and for a negative beta.
    """
    if not 0 <= beta < np.inf:
        raise InputError(f"beta is {beta!r}; expected 0 or a positive number")
    means: Any = {"over": over, "normalizer": normalizer}
    policy, clipped = clipped_policy.forward(
        log_probs, old_log_probs, advantages, weights, clip=clip, clip_high=clip_high, **means
    )  # (1)
    counts = (np.asarray(weights) != 0) & (beta != 0)
    here, there = np.where(counts, log_probs, 0), np.asarray(np.where(counts, reference_log_probs, 0), log_probs.dtype)
    k, estimate = kl_estimate.forward(here, there, kind=kind)  # (2)
    mean, weighted = weighted_mean.forward(k, weights, **means)
    loss = policy + log_probs.dtype.type(beta) * mean  # (3)
    return loss, Saved(clipped, estimate, weighted, beta)


class Gradients(NamedTuple):
    log_probs: Inexact[Array, "B T"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    d_k = weighted_mean.backward(d_loss * saved.beta, saved.weighted_mean).x  # undoes (3)
    d_log_probs = kl_estimate.backward(d_k, saved.kl_estimate).log_probs  # undoes (2)
    return Gradients(clipped_policy.backward(d_loss, saved.clipped_policy).log_probs + d_log_probs)  # undoes (1)
