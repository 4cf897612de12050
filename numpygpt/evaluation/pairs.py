"""What a model says of pairs of answers, of which the first was preferred.

A reward model scores each answer at its last token. A model that writes gives each answer a log-probability, the sum
over its tokens; measured from a reference ρ, this is the reward β log(π / ρ) of DPO (`numpygpt.objectives.dpo`).

    accuracy   the share of pairs whose preferred answer has the larger number; equal ones count half
    margin     the mean of the first number less the second
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from numpygpt.data.batching import PairBatch, Pairs, TokenBatch
from numpygpt.evaluation.scores import LogitsOf, checked, longest_first, share_ahead
from numpygpt.objectives import dpo, reward
from numpygpt.ops import token_log_probs
from numpygpt.shapes import Array, Inexact


class PairScore(NamedTuple):
    """Of all pairs together, by numbers of one kind; the loss is that of a model which learns by them, or None."""

    accuracy: float
    margin: float
    loss: float | None = None


def score_rewards(
    logits_of: LogitsOf,
    pairs: Pairs,
    *,
    batch_size: int = 1,
    advance: Callable[[int], Any] = lambda done: None,
) -> PairScore:
    """The score by a reward model's scores; `advance` is told how many more pairs are done.

    Raises InputError for scores that are not finite.
    """

    def last(rows: TokenBatch) -> Array:
        return checked(logits_of(rows.inputs))[np.arange(len(rows.inputs)), rows.lengths - 1, 0]

    chosen, rejected = _numbers(last, pairs, batch_size, advance)
    return _scored(chosen, rejected, float(reward.forward(chosen, rejected)[0]))


class PreferenceScore(NamedTuple):
    """By log-probabilities, and by rewards relative to a reference; None without one."""

    log_probs: PairScore
    rewards: PairScore | None


def score_preferences(
    logits_of: LogitsOf,
    pairs: Pairs,
    *,
    reference: LogitsOf | None = None,
    beta: float = 0.1,
    batch_size: int = 1,
    advance: Callable[[int], Any] = lambda done: None,
) -> PreferenceScore:
    """The score by the log-probabilities of a model that writes; `advance` as in `score_rewards`.

    With a reference, each pair is read twice, and told twice.

    Raises InputError for logits that are not finite, and for a β that is not positive.
    """
    chosen, rejected = _numbers(_sums_by(logits_of), pairs, batch_size, advance)
    by_log_probs = _scored(chosen, rejected)
    if reference is None:
        return PreferenceScore(by_log_probs, None)
    references = _numbers(_sums_by(reference), pairs, batch_size, advance)
    loss, saved = dpo.forward(chosen, rejected, *references, beta=beta)
    return PreferenceScore(by_log_probs, _scored(saved.rewards[0], saved.rewards[1], float(loss)))


def _sums_by(logits_of: LogitsOf) -> Callable[[TokenBatch], Array]:
    """A function from rows to the log-probability of the answer in each."""

    def sums(rows: TokenBatch) -> Array:
        return checked(token_log_probs.forward(logits_of(rows.inputs), rows.targets)[0]).sum(axis=1)

    return sums


def _numbers(
    number_of: Callable[[TokenBatch], Array], pairs: Pairs, batch_size: int, advance: Callable[[int], Any]
) -> Inexact[Array, "2 N"]:
    """The numbers of the chosen and of the rejected answers, both in one order."""
    found = []
    for batch in _batches(pairs, batch_size):
        found.append(np.stack(np.split(number_of(batch.both), 2)))
        advance(len(batch.chosen.lengths))
    return np.concatenate(found, axis=1)


def _batches(pairs: Pairs, batch_size: int) -> Iterator[PairBatch]:
    lengths = [max(len(pair.chosen.token_ids), len(pair.rejected.token_ids)) for pair in pairs.pairs]
    return (pairs.batch(np.array(numbers)) for numbers in longest_first(lengths, batch_size))


def _scored(chosen: Inexact[Array, "N"], rejected: Inexact[Array, "N"], loss: float | None = None) -> PairScore:
    return PairScore(share_ahead(chosen, rejected), float(np.mean(chosen - rejected)), loss)
