"""Estimates of the divergence of a policy from a reference, from the log-probabilities of tokens that were drawn.

    log_probs             (...)   log π of the tokens, which the policy π has drawn
    reference_log_probs   (...)   log ρ of the same tokens by the reference ρ
    y                     (...)   an estimate of KL(π || ρ) for each token

Forward, with u = log ρ - log π and r = exp(u) (Schulman 2020, "Approximating KL divergence"):

    (1)  "k1":  y = -u                    unbiased; its variance is that of u, and it may be negative
         "k2":  y = u² / 2                biased, by a term of the third order in u; never negative
         "k3":  y = r - 1 - u             unbiased, as E[r] = 1; never negative

If the two are near, u is small: the divergence is about E[u²] / 2, so k1's deviation is far larger than what it
estimates, while k2 and k3 are about u² / 2 and deviate by about as much as they are. If they are far from each other, r
has a heavy tail, and k3 may have the largest variance. As an estimate k3 is the best of the three for policies that are
near. As a loss, through which the policy is trained, it is another matter. The
derivatives with respect to log π are

    (2)  k1: 1        k2: -u        k3: 1 - r

Averaged over the tokens that π draws, k1's is E[∇ log π] = 0: as a loss it does nothing. k2's is the true gradient of
KL(π || ρ), which is E[-u ∇ log π]. k3's is E[(1 - r) ∇ log π], the gradient of KL(ρ || π), the other direction. The
mean of an estimator being right says nothing of its gradient (Tang & Munos 2025, arXiv:2506.09477). The gradients here
are those of the formulas, so whoever uses k3 as a loss has the choice of GRPO (Shao et al. 2024, arXiv:2402.03300,
equation 4) with what follows from it.

Where π excludes a token (log π = -inf), no such token can have been drawn, and y and its gradient are 0; where the
reference alone excludes it, r is 0, k3's gradient is 1, and the estimates are infinite.

Saved: u and what kind it is.
Trap: r - 1 for a small u loses its digits; exp(u) - 1 is taken at once (expm1).
"""

from typing import NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.shapes import Array, Inexact

KINDS = ("k1", "k2", "k3")


class Saved(NamedTuple):
    u: Inexact[Array, "..."]
    excluded: Array
    kind: str


def forward(
    log_probs: Inexact[Array, "*shape"], reference_log_probs: Inexact[Array, "*shape"], *, kind: str = "k3"
) -> tuple[Inexact[Array, "*shape"], Saved]:
    """Raises InputError for another kind than "k1", "k2" and "k3"."""
    if kind not in KINDS:
        raise InputError(f"the estimate of the divergence is {kind!r}; expected one of {', '.join(map(repr, KINDS))}")
    excluded = log_probs.real == -np.inf
    u = np.where(excluded, 0, reference_log_probs) - np.where(excluded, 0, log_probs)
    if kind == "k1":
        y = -u  # (1)
    elif kind == "k2":
        y = u * u / 2
    else:
        y = np.expm1(u) - u
    return y, Saved(u, excluded, kind)


class Gradients(NamedTuple):
    log_probs: Inexact[Array, "..."]
    reference_log_probs: Inexact[Array, "..."]


def backward(d_y: Inexact[Array, "*shape"], saved: Saved) -> Gradients:
    u = saved.u
    if saved.kind == "k1":
        slope = np.ones_like(u)  # (2)
    elif saved.kind == "k2":
        slope = -u
    else:
        slope = -np.expm1(u)
    d_log_probs = np.where(saved.excluded, 0, d_y * slope)  # undoes (1)
    return Gradients(d_log_probs, -d_log_probs)
