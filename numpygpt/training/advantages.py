"""How much better each token of an answer was than expected: what PPO, REINFORCE and GRPO weight tokens by.

None of these is trained through: they are constants of a step, computed in float64.
"""

from typing import NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.shapes import Array

#: What a standard deviation is increased by before it divides: that of the reference implementations.
EPS = 1e-8


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
    gamma, lam        γ and λ, from 0 to 1; λ = 1 is the whole return without bias, λ = 0 one step ahead

    Raises InputError for a reward or value of a token that counts that is not finite.
    """
    rewards, values = (np.asarray(array, np.float64) for array in (rewards, values))
    counts = np.asarray(weights) != 0
    for what, array in (("reward", rewards), ("value", values)):
        wrong = np.argwhere(counts & ~np.isfinite(array))
        if wrong.size:
            row, column = wrong[0]
            raise InputError(f"the {what} of token {column} of answer {row} is {array[row, column]}; expected a number")
    advantages = np.zeros(rewards.shape)
    ahead, value_ahead = np.zeros(len(rewards)), np.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        here = counts[:, t]
        delta = np.where(here, rewards[:, t], 0) + gamma * value_ahead - np.where(here, values[:, t], 0)
        ahead = np.where(here, delta + gamma * lam * ahead, ahead)
        value_ahead = np.where(here, values[:, t], value_ahead)
        advantages[:, t] = np.where(here, ahead, 0)
    return Advantages(advantages, np.where(counts, advantages + np.where(counts, values, 0), 0))


def whitened(x: Array, weights: Array, *, shift_mean: bool = True) -> Array:
    """The values of tokens that count, with mean 0 (or their own) and variance 1; 0 elsewhere.

    Their variance is the unbiased one, as in the reference implementations of PPO for text. A single value, or values
    that all are equal, become 0.
    """
    counts = np.asarray(weights) != 0
    chosen = np.asarray(x, np.float64)[counts]
    out = np.zeros(np.shape(x))
    if chosen.size < 2:
        return out
    mean, std = chosen.mean(), chosen.std(ddof=1)
    out[counts] = (chosen - mean) / (std + EPS) + (0 if shift_mean else mean)
    return out


def of_groups(rewards: Array, group: int, *, scale: bool = True) -> Array:
    """The advantage of each answer among those to the same prompt (Shao et al. 2024, arXiv:2402.03300, section 4.1.2).

        A = (r - mean of the group) / (standard deviation of the group + ε)

    rewards   (N), the answers to each prompt beside each other
    group     how many there are to each prompt
    scale     whether to divide; without it, easy and hard prompts count as their rewards spread (Liu et al. 2025,
              arXiv:2503.20783)

    A group whose rewards all are equal has the advantage 0: it says nothing. Raises InputError for a number of rewards
    that is no multiple of the group, a group of fewer than 2, and a reward that is not finite.
    """
    rewards = np.asarray(rewards, np.float64)
    if group < 2 or len(rewards) % group:
        raise InputError(f"there are {len(rewards)} rewards in groups of {group}; expected groups of 2 or more, all full")
    wrong = np.flatnonzero(~np.isfinite(rewards))
    if wrong.size:
        raise InputError(f"the reward of answer {wrong[0]} is {rewards[wrong[0]]}; expected a number")
    each = rewards.reshape(-1, group)
    centered = each - each.mean(axis=1, keepdims=True)
    if scale:
        centered = centered / (each.std(axis=1, ddof=1, keepdims=True) + EPS)
    return centered.reshape(-1)
