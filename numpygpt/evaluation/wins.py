"""Which of two models answers better, as somebody judges it: a reward model, or any other function.

    win rate   the share of prompts to which the first model's answer has the higher reward; equal ones count half

Each prompt is answered once by either model.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from numpygpt.data.instructions import Prompt
from numpygpt.decoding.answers import Answer
from numpygpt.evaluation.scores import checked, longest_first, share_ahead
from numpygpt.shapes import Array

#: Answers to prompts.
Writer = Callable[[Sequence[Prompt]], Sequence[Answer]]
#: A number for each answer to a prompt, the higher the better.
Judge = Callable[[Sequence[Prompt], Sequence[Answer]], Array]


class WinScore(NamedTuple):
    """Of all prompts together: the win rate, how many rewards were equal, and the mean reward of either model."""

    rate: float
    ties: int
    reward: float
    other_reward: float


def score_wins(
    writer: Writer,
    other: Writer,
    judge: Judge,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 1,
    advance: Callable[[int], Any] = lambda done: None,
) -> WinScore:
    """The score of a model that writes against another; `advance` is told how many more prompts are done.

    Raises InputError as the two writers and the judge, and for rewards that are not finite.
    """
    found = []
    for numbers in longest_first([len(prompt.token_ids) for prompt in prompts], batch_size):
        batch = [prompts[number] for number in numbers]
        found.append(np.stack([checked(judge(batch, answers(batch))) for answers in (writer, other)]))
        advance(len(batch))
    ours, theirs = np.concatenate(found, axis=1)
    ties = int(np.count_nonzero(ours == theirs))
    return WinScore(share_ahead(ours, theirs), ties, float(ours.mean()), float(theirs.mean()))
