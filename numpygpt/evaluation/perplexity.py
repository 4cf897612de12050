"""The perplexity of a text, by windows that slide over it.

    tokens          x_1 ... x_N
    loss            -(1/(N-1)) sum over i = 2..N of log p(x_i | the tokens before it in its window)     nats a token
    perplexity      exp(loss)
    bits a byte     (N-1) loss / (ln 2 * bytes of the text in UTF-8)

A model reads at most C tokens, so the text is read in windows of C tokens, one every `stride` tokens. Each token is
scored once, in the first window that has it, so all but those of the first window are scored after at least C - stride
others. With the largest stride, C - 1, two windows share one token only. This is fast, but the first tokens of a window
are scored after few others. A small stride comes close to the model's best.

The protocol is that of Hugging Face's documentation ("Perplexity of fixed-length models"). It differs from the script
there in one point: the script weights all windows after the first as if they scored a token less than they do.
"""

import math
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.evaluation.scores import LogitsOf, scores
from numpygpt.shapes import Array, Integer


def perplexity(loss: float) -> float:
    """exp(loss) for a loss in nats a token: the number of equally likely tokens among which one would be as unsure.

    It is infinite if it is too large for a number.
    """
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


class Window(NamedTuple):
    """Tokens start to stop of a text, of which those from `scored` on are scored."""

    start: int
    stop: int
    scored: int


class TextScore(NamedTuple):
    """Of a text.

    nats     the sum of the losses of its tokens
    tokens   how many tokens were scored: all but the first
    """

    nats: float
    tokens: int

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)

    def bits_a_byte(self, text: str) -> float:
        """Bits for each byte of the text in UTF-8."""
        return self.nats / math.log(2) / len(text.encode())

    def perplexity_a_word(self, text: str) -> float:
        """exp of the nats for each word; words are what white space separates."""
        return perplexity(self.nats / max(1, len(text.split())))


def windows(tokens: int, length: int, stride: int) -> Iterator[Window]:
    """The windows over a text of so many tokens.

    Raises InputError for a stride that is not from 1 to length - 1, a length below 2, and a text without 2 tokens.
    """
    if length < 2:
        raise InputError(f"the model reads {length} token at a time; expected at least 2, to predict one from another")
    if not 1 <= stride < length:
        raise InputError(f"the stride is {stride}; expected from 1 to {length - 1}, a token less than a window")
    if tokens < 2:
        raise InputError(f"the text has {tokens} tokens; expected at least 2, because the first one is not predicted")
    scored = 1
    for start in range(0, tokens, stride):
        stop = min(start + length, tokens)
        yield Window(start, stop, scored)
        if stop == tokens:
            return
        scored = stop


def score_text(
    logits_of: LogitsOf,
    ids: Integer[Array, "N"],
    *,
    length: int,
    stride: int,
    batch_size: int = 1,
    advance: Callable[[int], Any] = lambda done: None,
) -> TextScore:
    """The score of a text of token ids.

    length, stride   of the windows, in tokens
    batch_size       windows that the model reads at a time
    advance          is told how many more tokens were scored

    Raises InputError as `windows`, and for logits that are not finite.
    """
    nats, tokens = 0.0, 0
    for batch in _batches(windows(len(ids), length, stride), batch_size):
        rows = np.stack([ids[window.start : window.stop] for window in batch])
        losses, _ = scores(logits_of(rows[:, :-1]), rows[:, 1:])
        for window, of_window in zip(batch, losses, strict=True):
            new = of_window[window.scored - window.start - 1 :]
            nats, tokens = nats + float(new.sum()), tokens + len(new)
            advance(len(new))
    return TextScore(nats, tokens)


def _batches(all_windows: Iterator[Window], batch_size: int) -> Iterator[list[Window]]:
    """At most `batch_size` windows of one length together; only the last window can be shorter than the others."""
    for _, same_length in groupby(all_windows, key=lambda window: window.stop - window.start):
        batch: list[Window] = []
        for window in same_length:
            batch.append(window)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch
