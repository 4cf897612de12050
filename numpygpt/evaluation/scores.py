"""What a model says of given tokens: the loss of each, and whether it was the likeliest.

A protocol needs no more of a model than its logits, so it takes a function that computes them, on whatever device.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from numpygpt.data.tokenizer import Encoding, text_to_token_ids
from numpygpt.errors import InputError
from numpygpt.ops import cross_entropy
from numpygpt.shapes import Array, Bool, Inexact, Integer

#: From token ids (B, T), int64, to the logits of each next token (B, T, V).
LogitsOf = Callable[[Array], Array]


class Scores(NamedTuple):
    """Of each target.

    losses   -log p(target) in nats, float64
    greedy   whether no other token was likelier
    """

    losses: Inexact[Array, "B T"]
    greedy: Bool[Array, "B T"]


def scores(logits: Inexact[Array, "B T V"], targets: Integer[Array, "B T"]) -> Scores:
    """The scores of the targets, -log softmax(logits)[target], with log-sum-exp taken from the largest logit.

    Raises InputError for logits that are not finite.
    """
    rows, flat_targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    _, saved = cross_entropy.forward(rows, flat_targets)
    below = saved.highest[:, 0] - rows[np.arange(len(rows)), flat_targets]
    losses = saved.log_sum[:, 0].astype(np.float64) + below
    if not np.isfinite(losses).all():
        raise InputError("the model's logits are not finite: its weights are damaged or too large")
    return Scores(losses.reshape(targets.shape), (below == 0).reshape(targets.shape))


class Completion(NamedTuple):
    """Token ids, and those that shall follow them."""

    context: Sequence[int]
    tokens: Sequence[int]


def completion(context: str, text: str, tokenizer: Encoding) -> Completion:
    """The token ids of a text that shall follow another; each text is encoded alone."""
    return Completion(*(text_to_token_ids(part, tokenizer)[0].tolist() for part in (context, text)))


class CompletionScore(NamedTuple):
    """Of a completion after its context.

    loss     the sum of its tokens' losses, in nats
    tokens   how many they are
    greedy   whether each of them was the likeliest
    """

    loss: float
    tokens: int
    greedy: bool


def score_completions(
    logits_of: LogitsOf,
    completions: Sequence[Completion],
    context_length: int,
    batch_size: int,
    advance: Callable[[int], Any] = lambda done: None,
) -> list[CompletionScore]:
    """The score of each completion.

    A context that is too long loses its first tokens. Shorter sequences of a batch are filled up at their end, which
    attention to earlier tokens alone does not see. The longest come first, so that a batch that is too large is found
    out at once.

    advance   is told how many more completions are done

    Raises InputError for a context or a completion without a token, and for a completion that does not fit.
    """
    for number, (context, tokens) in enumerate(completions, 1):
        if not context or not tokens:
            raise InputError(f"completion {number} has {len(context)} tokens before it and {len(tokens)} of its own; "
                             "expected at least one of each")
        if len(tokens) > context_length:
            raise InputError(f"completion {number} has {len(tokens)} tokens; the model takes {context_length} at most")
    sequences = [[*context, *tokens][-(context_length + 1) :] for context, tokens in completions]
    found: dict[int, CompletionScore] = {}
    for batch in longest_first([len(sequence) for sequence in sequences], batch_size):
        longest = max(len(sequences[index]) for index in batch)
        ids = np.zeros((len(batch), longest), np.int64)
        for filled, index in zip(ids, batch, strict=True):
            filled[: len(sequences[index])] = sequences[index]
        losses, greedy = scores(logits_of(ids[:, :-1]), ids[:, 1:])
        for row, index in enumerate(batch):
            end = len(sequences[index]) - 1
            own = slice(end - len(completions[index].tokens), end)
            found[index] = CompletionScore(
                float(losses[row, own].sum()), len(completions[index].tokens), bool(greedy[row, own].all())
            )
        advance(len(batch))
    return [found[index] for index in range(len(completions))]


def longest_first(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """The numbers of items of these lengths in batches, so that a batch that is too large is found out at once."""
    items = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    return (items[start : start + batch_size] for start in range(0, len(items), batch_size))


def checked(values: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """The values in float64. InputError if one of them is not finite."""
    if not np.isfinite(values).all():
        raise InputError("the model's scores are not finite: its weights are damaged or too large")
    return values.astype(np.float64)


def share_ahead(first: Inexact[Array, "N"], second: Inexact[Array, "N"]) -> float:
    """The share of pairs in which the first number is the larger one; equal ones count half."""
    return float(np.mean((first > second) + (first == second) / 2))


@contextmanager
def progress_bar(total: int, unit: str) -> Iterator[Callable[[int], Any]]:
    """Within the `with`, a bar on the terminal; its function is told how many more are done."""
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, unit_scale=True, dynamic_ncols=True) as bar:
        yield bar.update
