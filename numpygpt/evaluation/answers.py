"""How likely the answers of instruction records are, each after its prompt. No token of a prompt is scored.

    loss         the mean of -log p over the tokens of all answers, the one that ends each included
    perplexity   exp(loss)
    accuracy     the share of these tokens that are the likeliest
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numpygpt.data.batching import Examples
from numpygpt.evaluation.perplexity import TextScore
from numpygpt.evaluation.scores import LogitsOf, longest_first, scores
from numpygpt.shapes import IGNORE_INDEX


class AnswerScore(NamedTuple):
    """Of all answers together: their nats and tokens, and how many tokens were the likeliest."""

    score: TextScore
    right: int

    @property
    def accuracy(self) -> float:
        """As above."""
        return self.right / self.score.tokens


def score_answers(
    logits_of: LogitsOf,
    examples: Examples,
    *,
    batch_size: int = 1,
    advance: Callable[[int], Any] = lambda done: None,
) -> AnswerScore:
    """The score over all records; `advance` is told how many more are done.

    Raises InputError for logits that are not finite.
    """
    nats, tokens, right = 0.0, 0, 0
    for numbers in longest_first([len(example.token_ids) for example in examples.examples], batch_size):
        batch = examples.batch(np.array(numbers))
        counted = batch.targets != IGNORE_INDEX
        found = scores(logits_of(batch.inputs)[counted][np.newaxis], batch.targets[counted][np.newaxis])
        nats += float(found.losses.sum())
        tokens += found.losses.size
        right += int(found.greedy.sum())
        advance(len(numbers))
    return AnswerScore(TextScore(nats, tokens), right)
