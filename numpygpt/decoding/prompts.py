"""Prompts of one length or of several, as one array of token ids with padding on the left.

    ids      (B, T)   token ids; T is the length of the longest prompt
    starts   (B)      the column where each prompt begins: what is before is padding

Padding on the left keeps the last token of every prompt in the last column, from which the next one is chosen. A
padded prompt gives what it gives alone: its positions are counted from its own start, and nothing sees its padding.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.ops.visible import causal_from
from numpygpt.shapes import Array, Integer

PADDING = 0  # any id will do: it is seen by nobody


class Prompts(NamedTuple):
    """The rows of a batch, as above."""

    ids: Integer[Array, "B T"]
    starts: Integer[Array, "B"]

    @property
    def padded(self) -> bool:
        """Whether any of them has padding."""
        return bool(self.starts.any())

    def followed_by(self, chosen: Integer[Array, "B"]) -> "Prompts":
        """Each with one more token."""
        # Without a dtype, uint64 prompts beside int64 choices would become floats.
        ids = np.concatenate([self.ids, chosen[:, np.newaxis]], axis=1, dtype=np.int64, casting="unsafe")
        return Prompts(ids, self.starts)

    def last(self, tokens: int) -> "Prompts":
        """The last `tokens` of each."""
        cut = max(0, self.ids.shape[1] - tokens)
        return Prompts(self.ids[:, cut:], np.maximum(self.starts - cut, 0))

    def options(self, queries: int) -> dict[str, Any]:
        """What the model has to be told of the last `queries` columns: nothing if there is no padding."""
        if not self.padded:
            return {}
        columns = np.arange(self.ids.shape[1])
        positions = np.maximum(columns - self.starts[:, np.newaxis], 0)
        return {
            "positions": positions[:, -queries:],
            "visible": causal_from(self.starts, queries, len(columns)),
        }


def checked_prompts(idx: Any, context_size: int) -> Prompts:
    """The prompts: an array (B, T), or sequences of ids of several lengths.

    Raises InputError for no prompts, for one without tokens or with other values than integers, and for a context_size
    out of range.
    """
    if context_size < 1:
        raise InputError(f"context_size is {context_size}; expected at least 1")
    if isinstance(idx, (list, tuple)) and len({np.shape(row)[:1] for row in idx}) > 1:
        return _padded([_checked_row(np.asarray(row), number) for number, row in enumerate(idx)])
    ids = np.asarray(idx)
    if ids.ndim != 2 or 0 in ids.shape:
        raise InputError(f"the prompt has shape {ids.shape}; expected (batch, tokens) with at least one of each")
    return Prompts(ids, np.zeros(len(ids), int))


def _checked_row(row: Array, number: int) -> Array:
    if row.ndim != 1 or not row.size or not np.issubdtype(row.dtype, np.integer):
        raise InputError(
            f"prompt {number} is {row.dtype} {row.shape}; expected integers of shape (tokens,), at least one"
        )
    return row


def _padded(rows: list[Array]) -> Prompts:
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), PADDING)
    for padded, row in zip(ids, rows, strict=True):
        padded[longest - len(row) :] = row
    return Prompts(ids, np.array([longest - len(row) for row in rows]))
