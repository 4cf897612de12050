"""How much better each token of an answer was than expected: what PPO, REINFORCE and GRPO weight tokens by.

None of these is trained through: they are constants of a step, computed in float64. Where the rewards of all answers
are equal, no answer was better than another, and what compares answers gives exactly 0.
"""

from typing import NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.shapes import Array

#: What the variance is increased by before its root divides, in whitening (trl's and OpenAI's `whiten`).
WHITENING_EPS = 1e-8
#: What the standard deviation of a group is increased by before it divides (trl's GRPO).
GROUP_EPS = 1e-4


def penalized_rewards(
    scores: Array, log_probs: Array, reference_log_probs: Array, weights: Array, *, beta: float
) -> Array:
    """The reward of each token (B, T), in which a policy pays for its distance from the reference, token by token.

    Its answer is scored as a whole, so the score is the reward of the last token (Stiennon et al. 2020,
    arXiv:2009.01325, section 3.4; Ouyang et al. 2022, arXiv:2203.02155, equation 2):

        r_t = -β (log π_t - log ρ_t) + score of the answer if t is its last token

    The penalty is the k1 estimate of KL(π || ρ) (`numpygpt.ops.kl_estimate`). It is a part of the reward, so nothing is
    differentiated here.

    scores                           (B), of the answers
    log_probs, reference_log_probs   (B, T), of the tokens by the policy π that drew them and by the reference ρ
    weights                          (B, T); tokens of 0 are no part of the answer
    beta                             β, 0 or more; with 0 the score alone, however far the two are apart

    Raises InputError for a negative beta, an answer without tokens, and a score that is not finite.
    """
    if not 0 <= beta < np.inf:
        raise InputError(f"beta is {beta!r}; expected 0 or a positive number")
    counts = np.asarray(weights) != 0
    empty = np.flatnonzero(~counts.any(axis=1))
    if empty.size:
        raise InputError(f"answer {empty[0]} has no tokens; expected at least 1")
    scores = _checked(scores, "score")
    paid = counts & (beta != 0)
    ratios = np.where(paid, log_probs, 0) - np.where(paid, reference_log_probs, 0)
    rewards = -beta * ratios.astype(np.float64)
    last = counts.shape[1] - 1 - np.argmax(counts[:, ::-1], axis=1)
    rewards[np.arange(len(rewards)), last] += scores
    return rewards


class Advantages(NamedTuple):
    """Of each token (B, T): the advantage, and the return that its value should have been. 0 where none counts."""

    advantages: Array
    returns: Array


def generalized(rewards: Array, values: Array, weights: Array, *, gamma: float = 1.0, lam: float = 0.95) -> Advantages:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equation 16).

        δ_t = r_t + γ v_{t+1} - v_t                    v after the last token of an answer is 0
        A_t = δ_t + γ λ A_{t+1}
        R_t = A_t + v_t

    rewards, values   (B, T), of each token
    weights           (B, T); tokens of 0 are no part of the answer, and are passed over
    gamma, lam        γ and λ, from 0 to 1; λ = 1 is the whole return less the value, without bias, so the value head is
                      the baseline of REINFORCE; λ = 0 looks one step ahead

    Raises InputError for a γ or λ outside 0 to 1, and for a reward or value of a token that counts that is not finite.
    """
    _refuse_discounts(gamma, lam)
    counts = np.asarray(weights) != 0
    r, v = (_of_counted(array, counts, what) for what, array in (("reward", rewards), ("value", values)))
    advantages = np.zeros(r.shape)
    next_advantage, next_value = np.zeros((2, len(r)))
    for t in reversed(range(r.shape[1])):
        here = counts[:, t]
        delta = r[:, t] + gamma * next_value - v[:, t]
        advantages[:, t] = np.where(here, delta + gamma * lam * next_advantage, 0)
        next_advantage = np.where(here, advantages[:, t], next_advantage)
        next_value = np.where(here, v[:, t], next_value)
    return Advantages(advantages, advantages + v)


def _refuse_discounts(gamma: float, lam: float) -> None:
    """InputError for a γ or λ outside 0 to 1."""
    for letter, number in (("gamma", gamma), ("lam", lam)):
        if not 0 <= number <= 1:
            raise InputError(f"{letter} is {number!r}; expected a number from 0 to 1")


def whitened(x: Array, weights: Array, *, shift_mean: bool = True) -> Array:
    """The values of tokens that count, with mean 0 (or their own) and variance 1; 0 elsewhere.

        y = (x - mean) / sqrt(variance + ε)            the variance is the unbiased one, that divides by n - 1

    The mean and the variance are those of all tokens that count in the whole batch: a micro-batch that is whitened
    alone gets other values. A single value, and values that all are equal, become 0 (or the mean).

    x            (B, T)
    shift_mean   whether the mean becomes 0; without it, it stays what it was
    """
    counts = np.asarray(weights) != 0
    chosen = np.asarray(x, np.float64)[counts]
    y = np.zeros(counts.shape)
    if chosen.size == 0:
        return y
    mean = chosen.mean()
    if (chosen != chosen[0]).any():
        y[counts] = (chosen - mean) / np.sqrt(chosen.var(ddof=1) + WHITENING_EPS)
    if not shift_mean:
        y[counts] += mean
    return y


def of_groups(rewards: Array, group: int, *, scale: bool = True) -> Array:
    """The advantage of each answer among those to the same prompt (Shao et al. 2024, arXiv:2402.03300, section 4.1.2).

        A = (r - mean of the group) / (standard deviation of the group + ε)

    rewards   (N), the answers to each prompt beside each other
    group     how many there are to each prompt
    scale     whether to divide; without it, easy and hard prompts count as their rewards spread (Liu et al. 2025,
              arXiv:2503.20783)

    The standard deviation is the unbiased one, as in trl. A group whose rewards all are equal has the advantage 0: it
    says nothing. Raises InputError for a number of rewards that is no multiple of the group, a group of fewer than 2,
    and a reward that is not finite.
    """
    each = _grouped(rewards, group)
    differ = (each != each[:, :1]).any(axis=1, keepdims=True)
    A = np.where(differ, each - each.mean(axis=1, keepdims=True), 0)
    if scale:
        A = A / (each.std(axis=1, ddof=1, keepdims=True) + GROUP_EPS)
    return A.reshape(-1)


def leave_one_out(rewards: Array, group: int) -> Array:
    """The advantage of each answer over the mean of the others to the same prompt.

        A_i = r_i - sum of the other rewards / (group - 1)

    The sources are Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!", and Ahmadian et al. 2024,
    arXiv:2402.14740, who call it RLOO. The baseline does not depend on the answer itself, so the gradient of
    `reinforce` with it has no bias. Arguments and errors are those of `of_groups`.
    """
    each = _grouped(rewards, group)
    differ = (each != each[:, :1]).any(axis=1, keepdims=True)
    others = (each.sum(axis=1, keepdims=True) - each) / (group - 1)
    return np.where(differ, each - others, 0).reshape(-1)


def _grouped(rewards: Array, group: int) -> Array:
    """The rewards (groups, group) in float64."""
    checked = _checked(rewards, "reward")
    if group < 2 or len(checked) % group:
        raise InputError(f"{len(checked)} rewards in groups of {group}; expected full groups of 2 or more")
    return checked.reshape(-1, group)


def _checked(numbers: Array, what: str) -> Array:
    """The numbers of answers (N) in float64. InputError if one is not finite."""
    array = np.asarray(numbers, np.float64)
    wrong = np.flatnonzero(~np.isfinite(array))
    if wrong.size:
        raise InputError(f"the {what} of answer {wrong[0]} is {array[wrong[0]]}; expected a finite number")
    return array


def _of_counted(array: Array, counts: Array, what: str) -> Array:
    """What tokens (B, T) have that count, in float64, and 0 elsewhere. InputError if one is not finite."""
    checked = np.where(counts, np.asarray(array, np.float64), 0)
    wrong = np.argwhere(~np.isfinite(checked))
    if wrong.size:
        row, column = wrong[0]
        raise InputError(
            f"the {what} of token {column} of answer {row} is {checked[row, column]}; expected a finite number"
        )
    return checked
