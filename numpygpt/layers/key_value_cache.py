"""The keys and values of earlier positions, for decoding one token at a time.

A cache is never changed: `extended` returns a longer one. Usually nothing is copied: both share one array with room for
every position of the context, and the new positions are written behind those of the shorter cache, which it does not
read. The longer cache gets an array of its own only if that place is taken already, because a cache is continued a
second time in another way, if the room is too small, or if the new positions are of a wider dtype.
"""

from dataclasses import dataclass

import numpy as np

from numpygpt.shapes import Array, Inexact, Integer


@dataclass(eq=False)
class Buffer:
    """Memory for C positions of keys and of values, of which the first `used` belong to some cache."""

    keys_values: Inexact[Array, "2 B H C K"]
    used: int = 0


@dataclass(frozen=True, eq=False)
class KeyValueCache:
    """The first `length` positions of a buffer."""

    buffer: Buffer
    length: int = 0

    @classmethod
    def empty(cls, B: int, H: int, C: int, K: int, dtype: np.dtype) -> "KeyValueCache":
        """No positions yet, and room for C."""
        return cls(Buffer(np.empty((2, B, H, C, K), dtype)))

    @property
    def batch_size(self) -> int:
        """B."""
        return self.buffer.keys_values.shape[1]

    @property
    def keys(self) -> Inexact[Array, "B H S K"]:
        """Of all positions so far, a view."""
        return self.buffer.keys_values[0, :, :, : self.length]

    @property
    def values(self) -> Inexact[Array, "B H S K"]:
        """Of all positions so far, a view."""
        return self.buffer.keys_values[1, :, :, : self.length]

    def extended(self, keys: Inexact[Array, "B H T K"], values: Inexact[Array, "B H T K"]) -> "KeyValueCache":
        """These positions, and T more."""
        start, stop = self.length, self.length + keys.shape[2]
        buffer, capacity = self.buffer, self.buffer.keys_values.shape[3]
        dtype = np.result_type(buffer.keys_values, keys, values)
        if buffer.used != start or stop > capacity or dtype != buffer.keys_values.dtype:
            buffer = self._copied(slice(None), max(stop, capacity), dtype)
        buffer.keys_values[0, :, :, start:stop] = keys
        buffer.keys_values[1, :, :, start:stop] = values
        buffer.used = stop
        return KeyValueCache(buffer, stop)

    def first(self, length: int) -> "KeyValueCache":
        """The first positions alone, at most as many as there are. It shares the buffer."""
        return KeyValueCache(self.buffer, length)

    def rows(self, rows: Integer[Array, "N"]) -> "KeyValueCache":
        """The cache of a batch made of these rows of this one's; a row may come several times."""
        held = self.buffer.keys_values
        return KeyValueCache(self._copied(rows, held.shape[3], held.dtype), self.length)

    def _copied(self, rows: Array | slice, capacity: int, dtype: np.dtype) -> Buffer:
        held = self.buffer.keys_values[:, rows, :, : self.length]
        copy = np.empty((*held.shape[:3], capacity, held.shape[4]), dtype)
        copy[:, :, :, : self.length] = held
        return Buffer(copy, self.length)
