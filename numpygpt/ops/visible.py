"""Which keys a query of attention may see: one description for `attention`, `flash_attention` and decoding.

    "causal"         a key's position is not later than the query's; the T queries are the last of the S positions
    "all"            every key
    (B, 1, T, S)     booleans: True where query t of a sequence may see key j, the same for all heads

A query that may see no key reads nothing: its context is 0, and so are all gradients through it.
"""

from typing import Literal, TypeAlias

import numpy as np

from numpygpt.errors import InputError
from numpygpt.shapes import Array, Bool, Integer

Visible: TypeAlias = Literal["causal", "all"] | Array


def hidden(visible: Visible, queries: slice, keys: slice, past: int) -> Array | None:
    """Booleans that broadcast to (B, H, queries, keys): True if the query may not see the key. None if all may see all.

    queries, keys   which of the T queries and which of the S keys, both counted from 0
    past            S - T, the keys before the first query's own

    Raises InputError for another word than the two.
    """
    if isinstance(visible, np.ndarray):
        return ~visible[:, :, queries, keys]
    if visible == "all":
        return None
    if visible != "causal":
        raise InputError(f"visible is {visible!r}; expected 'causal', 'all' or booleans of shape (B, 1, T, S)")
    if keys.stop <= past + queries.start + 1:
        return None
    return np.arange(keys.start, keys.stop) > past + np.arange(queries.start, queries.stop)[:, np.newaxis]


def causal_from(starts: Integer[Array, "B"], queries: int, keys: int) -> Bool[Array, "B 1 {queries} {keys}"]:
    """Causal attention for sequences that begin at different keys: those before `starts` are padding, seen by nobody.

    The queries are the last positions of the keys. A padding position's own query sees no key.
    """
    position = np.arange(keys)
    earlier = position <= position[keys - queries :, np.newaxis]
    return (earlier & (position >= starts[:, np.newaxis, np.newaxis]))[:, np.newaxis]
