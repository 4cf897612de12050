"""Direct preference optimization: a policy learns from pairs of answers, without a reward model.

    chosen, rejected                         (N)   log π of the answers, the sums over their tokens
    reference_chosen, reference_rejected     (N)   log ρ of the same answers by the reference ρ, where training began
    chosen_lengths, rejected_lengths         (N)   tokens of the answers, for a form that divides by them
    beta                                     β     how strongly the policy is held to the reference
    loss                                     ()    the mean over the pairs

    s₁, s₂                                   (N)   1, or 1 / length of the chosen and of the rejected answers
    m                                        (N)   by how much the policy prefers the chosen answer more than ρ does

Forward (Rafailov et al. 2023, arXiv:2305.18290, equation 7):

    (1)  m = s₁ (chosen - reference_chosen) - s₂ (rejected - reference_rejected)
    (2)  "sigmoid":  losses = -(1 - ε) log σ(β m) - ε log σ(-β m)
                     ε is the share of pairs that may be the wrong way round (Mitchell 2023, "A note on DPO with noisy
                     preferences & relationship to IPO": conservative DPO)
         "ipo":      losses = (m - 1 / (2 β))²     of a margin that has a goal (Azar et al. 2023, arXiv:2310.12036,
                     equation 17); with lengths, m is of the mean log-probability of a token, as trl has it
    (3)  loss = sum(losses) / N

Why. The policy that has the highest reward R less β times its divergence from ρ is ρ exp(R / β) / Z, with one Z for
all answers to a prompt. Solved for R, R = β log(π / ρ) + β log Z; in the difference of two answers Z is gone. So β m is
the difference of two rewards, and "sigmoid" is the loss of a reward model (`reward`) with β log(π / ρ) for its scores.

Without a reference, its two terms are 0: the policy is then compared with the uniform distribution over answers.

Derivation: each log-probability is in m once, with the sign and the factor that (1) shows, and

    d_m = d_loss / N · β (σ(β m) - (1 - ε))        the logistic loss with the label 1 - ε, of β m
    d_m = d_loss / N · 2 (m - 1 / (2 β))           "ipo"
    d_chosen = s₁ d_m, d_rejected = -s₂ d_m, and the opposites for the reference

Saved: m, s₁ and s₂, and what the logistic loss saves.
Traps: the tokens of the prompt counted in one of the sums; the mask of answer and prompt exchanged; log-probabilities
of tokens that are not shifted by one; a mean over tokens in the place of the sum.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.ops import logistic_loss
from numpygpt.shapes import Array, Inexact

FORMS = ("sigmoid", "ipo")


class Saved(NamedTuple):
    """`rewards` (2, N) is also what a run reports: the β log(π / ρ) of the chosen and of the rejected answers."""

    margins: Inexact[Array, "N"]
    rewards: Inexact[Array, "2 N"]
    shares: tuple[Any, Any]  # what chosen and rejected are multiplied by in m: 1, or 1 / length
    logistic_loss: logistic_loss.Saved | None
    beta: float
    divisor: float
    has_reference: bool


def forward(
    chosen: Inexact[Array, "N"],
    rejected: Inexact[Array, "N"],
    reference_chosen: Inexact[Array, "N"] | None = None,
    reference_rejected: Inexact[Array, "N"] | None = None,
    *,
    beta: float = 0.1,
    form: str = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_lengths: Array | None = None,
    rejected_lengths: Array | None = None,
    normalizer: float | None = None,
) -> tuple[Any, Saved]:
    """The loss, a NumPy scalar of the log-probabilities' dtype.

    normalizer   what the sum is divided by; None: N. A part of a batch has the number of pairs of the whole

    Raises InputError for another form, a β that is not positive, a smoothing outside [0, 0.5) or of "ipo", an answer
    without tokens, and one of two references or lengths without the other.
    """
    _refuse(beta, form, label_smoothing)
    _refuse_one_alone("reference log-probabilities", reference_chosen, reference_rejected)
    _refuse_one_alone("lengths", chosen_lengths, rejected_lengths)
    shares = _share(chosen_lengths, chosen, "chosen"), _share(rejected_lengths, rejected, "rejected")
    ahead, behind = chosen, rejected
    if reference_chosen is not None and reference_rejected is not None:
        ahead, behind = chosen - reference_chosen, rejected - reference_rejected
    margins = ahead * shares[0] - behind * shares[1]  # (1)
    if form == "sigmoid":
        losses, saved = logistic_loss.forward(beta * margins, np.full(margins.shape, 1 - label_smoothing))  # (2)
    else:
        losses, saved = (margins - 1 / (2 * beta)) ** 2, None
    divisor = float((len(margins) if normalizer is None else normalizer) or 1)
    loss = losses.sum() / margins.dtype.type(divisor)  # (3)
    rewards = np.stack([beta * ahead, beta * behind])
    return loss, Saved(margins, rewards, shares, saved, beta, divisor, reference_chosen is not None)


class Gradients(NamedTuple):
    chosen: Inexact[Array, "N"]
    rejected: Inexact[Array, "N"]
    reference_chosen: Inexact[Array, "N"] | None
    reference_rejected: Inexact[Array, "N"] | None


def backward(d_loss: Any, saved: Saved) -> Gradients:
    d_losses = np.full(saved.margins.shape, d_loss / saved.divisor, saved.margins.dtype)  # undoes (3)
    if saved.logistic_loss is not None:
        d_margins = saved.beta * logistic_loss.backward(d_losses, saved.logistic_loss).x  # undoes (2)
    else:
        d_margins = d_losses * 2 * (saved.margins - 1 / (2 * saved.beta))
    d_chosen, d_rejected = d_margins * saved.shares[0], -d_margins * saved.shares[1]  # undoes (1)
    d_reference = (-d_chosen, -d_rejected) if saved.has_reference else (None, None)
    return Gradients(d_chosen, d_rejected, *d_reference)


def _share(lengths: Array | None, log_probs: Array, which: str) -> Any:
    if lengths is None:
        return 1
    empty = np.flatnonzero(np.asarray(lengths) < 1)
    if empty.size:
        raise InputError(f"the {which} answer {empty[0]} has {lengths[empty[0]]} tokens; expected at least 1")
    return 1 / np.asarray(lengths, log_probs.dtype)


def _refuse(beta: float, form: str, label_smoothing: float) -> None:
    if form not in FORMS:
        raise InputError(f"the form of DPO is {form!r}; expected {' or '.join(map(repr, FORMS))}")
    if not 0 < beta < np.inf:
        raise InputError(f"beta is {beta!r}; expected a positive number")
    if not 0 <= label_smoothing < 0.5:
        raise InputError(f"label_smoothing is {label_smoothing!r}; expected from 0 to below 0.5")
    if form == "ipo" and label_smoothing:
        raise InputError(f"label_smoothing is {label_smoothing!r}, which the form 'ipo' does not have; leave it out")


def _refuse_one_alone(what: str, first: Any, second: Any) -> None:
    if (first is None) != (second is None):
        missing = "chosen" if first is None else "rejected"
        raise InputError(f"the {what} of the {missing} answers are missing; expected those of both or of none")
