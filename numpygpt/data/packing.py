"""Packing: several examples in one row, each as if it were alone.

    inputs      a b c e a c e -        three examples fill rows of 8 with 7 tokens and 1 of padding
    targets     . c e . . e . .        the last token of an example has no target: never the next one's first
    positions   0 1 2 3 0 1 2 0        each example begins at 0
    visible     a token sees itself and what is before it in its own example; padding sees nothing and is seen by none

Which examples share a row is decided once, longest first: each goes into the row in which it leaves the least room, and
into a new row if there is none (best-fit decreasing). That takes at most 11/9 of the rows that the best packing takes,
and four more (Johnson et al. 1974, "Worst-case performance bounds for simple one-dimensional packing algorithms").
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numpygpt.data.examples import Example
from numpygpt.data.windows import check_positive
from numpygpt.errors import InputError
from numpygpt.shapes import IGNORE_INDEX, Array, Bool, Integer


class PackedBatch(NamedTuple):
    """Rows (B, T) as above."""

    inputs: Integer[Array, "B T"]
    targets: Integer[Array, "B T"]
    positions: Integer[Array, "B T"]
    visible: Bool[Array, "B 1 T T"]

    @property
    def options(self) -> dict[str, Any]:
        """What the model's forward has to be told of the rows."""
        return {"positions": self.positions, "visible": self.visible}


class PackedExamples:
    """A dataset whose items are rows of several examples.

    length   the most tokens of a row: the model's context_length, or less
    pad_id   the token id of padding. Any id of the vocabulary will do, because nothing sees it
    rows     the numbers of the examples in each row

    Raises InputError for a length that is not positive, and for an example that is longer.
    """

    unit = "rows"

    def __init__(self, examples: Sequence[Example], length: int, pad_id: int = 0) -> None:
        self.examples, self.length, self.pad_id = examples, length, pad_id
        self.rows = best_fit([len(example.token_ids) for example in examples], length)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, numbers: Integer[Array, "B"]) -> PackedBatch:
        """The rows of these numbers, as wide as the fullest of them."""
        return packed([[self.examples[example] for example in self.rows[number]] for number in numbers], self.pad_id)

    @property
    def fullness(self) -> float:
        """The share of the rows, at their full length, that is no padding."""
        return sum(len(example.token_ids) for example in self.examples) / (len(self.rows) * self.length)

    @property
    def note(self) -> str:
        """A line that tells a person how full the rows are."""
        return (
            f"packed {len(self.examples):,} examples into {len(self.rows):,} rows of {self.length} tokens, "
            f"{self.fullness:.1%} full"
        )


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """The numbers of the items that share a row with room for so many tokens. InputError for an item that is longer."""
    check_positive(length=room)
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens for which a row has room, its number), sorted
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        if lengths[item] > room:
            raise InputError(f"example {item} has {lengths[item]} tokens; a packed row has room for {room}")
        at = bisect_left(free, (lengths[item], 0))
        if at == len(free):
            free.append((room, len(rows)))
            rows.append([])
        left, row = free.pop(at)
        rows[row].append(item)
        insort(free, (left - lengths[item], row))
    return rows


def packed(rows: Sequence[Sequence[Example]], pad_id: int = 0) -> PackedBatch:
    """The examples of each row, one after another, with padding up to the fullest row."""
    width = max(sum(len(example.token_ids) for example in row) for row in rows)
    shape = len(rows), width
    inputs, targets = np.full(shape, pad_id, np.int64), np.full(shape, IGNORE_INDEX, np.int64)
    positions, document = np.zeros(shape, np.int64), np.full(shape, -1)
    for number, row in enumerate(rows):
        start = 0
        for which, example in enumerate(row):
            here = np.s_[number, start : start + len(example.token_ids)]
            inputs[here], targets[here] = example.token_ids, example.targets
            positions[here], document[here] = np.arange(len(example.token_ids)), which
            start += len(example.token_ids)
    return PackedBatch(inputs, targets, positions, _visible(document))


def _visible(document: Integer[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """Which keys a query may see: earlier ones of its own example. Padding, -1, belongs to none."""
    same = (document[:, :, np.newaxis] == document[:, np.newaxis]) & (document[:, np.newaxis] >= 0)
    return np.tril(same)[:, np.newaxis]
