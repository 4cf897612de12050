"""Batches of examples, pairs and labeled texts, with padding on the right.

    inputs    a b c e      targets   . c e .       lengths   4        a, b: prompt; c: answer; e: what ends it
              a c e -                . e . .                 3        -: padding; .: IGNORE_INDEX

Attention is causal, so no token sees the padding that follows it, and a padded row gives what it gives alone. The
targets of padding do not count. A `DataLoader` asks a dataset for the batch of some of its items.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numpygpt.data.examples import Example
from numpygpt.data.labels import LabeledText
from numpygpt.data.preferences import Pair
from numpygpt.shapes import IGNORE_INDEX, Array, Integer


class TokenBatch(NamedTuple):
    """Rows of token ids (B, T), their targets (B, T), and how many tokens of each row are no padding (B)."""

    inputs: Integer[Array, "B T"]
    targets: Integer[Array, "B T"]
    lengths: Integer[Array, "B"]

    @property
    def options(self) -> dict[str, Any]:
        """What the model's forward has to be told of the rows: nothing."""
        return {}


class PairBatch(NamedTuple):
    """N pairs, whose rows all have one width T."""

    chosen: TokenBatch
    rejected: TokenBatch

    @property
    def both(self) -> TokenBatch:
        """The chosen examples, then the rejected ones, as 2 N rows for one forward."""
        return below(self.chosen, self.rejected)


class LabelBatch(NamedTuple):
    """Texts (B, T), how many tokens of each are no padding (B), and their classes (B)."""

    inputs: Integer[Array, "B T"]
    lengths: Integer[Array, "B"]
    labels: Integer[Array, "B"]


class Examples:
    """A dataset of examples: `batch` pads them.

    pad_id   the token id of padding. Any id of the vocabulary will do, because nothing sees it
    """

    unit = "examples"

    def __init__(self, examples: Sequence[Example], pad_id: int = 0) -> None:
        self.examples, self.pad_id = examples, pad_id

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, numbers: Integer[Array, "B"]) -> TokenBatch:
        """The examples of these numbers."""
        return padded([self.examples[number] for number in numbers], self.pad_id)


class Pairs:
    """A dataset of pairs: `batch` pads the examples of all its pairs to one width. `pad_id` as in `Examples`."""

    unit = "pairs"

    def __init__(self, pairs: Sequence[Pair], pad_id: int = 0) -> None:
        self.pairs, self.pad_id = pairs, pad_id

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, numbers: Integer[Array, "N"]) -> PairBatch:
        """The pairs of these numbers."""
        pairs = [self.pairs[number] for number in numbers]
        chosen, rejected = [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]
        width = max(len(example.token_ids) for example in (*chosen, *rejected))
        return PairBatch(padded(chosen, self.pad_id, width), padded(rejected, self.pad_id, width))


class LabeledTexts:
    """A dataset of labeled texts: `batch` pads them. `pad_id` as in `Examples`."""

    unit = "texts"

    def __init__(self, texts: Sequence[LabeledText], pad_id: int = 0) -> None:
        self.texts, self.pad_id = texts, pad_id

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, numbers: Integer[Array, "B"]) -> LabelBatch:
        """The texts of these numbers."""
        texts = [self.texts[number] for number in numbers]
        rows = padded([Example.without_answer(text.token_ids) for text in texts], self.pad_id)
        return LabelBatch(rows.inputs, rows.lengths, np.array([text.label for text in texts]))


def padded(examples: Sequence[Example], pad_id: int = 0, width: int | None = None) -> TokenBatch:
    """The examples as rows of one width T: `width`, or the length of the longest."""
    lengths = np.array([len(example.token_ids) for example in examples])
    shape = len(examples), int(lengths.max()) if width is None else width
    inputs, targets = np.full(shape, pad_id, np.int64), np.full(shape, IGNORE_INDEX, np.int64)
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        inputs[row, :length], targets[row, :length] = example.token_ids, example.targets
    return TokenBatch(inputs, targets, lengths)


def below(first: TokenBatch, second: TokenBatch) -> TokenBatch:
    """The rows of two batches of one width, the second below the first."""
    return TokenBatch(*map(np.concatenate, zip(first, second, strict=True)))
