"""Random choices, drawn from PyTorch's stream, which no release of NumPy or Python changes."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from numpygpt.random.torch_generator import TorchGenerator

Item = TypeVar("Item")


#: How many words are drawn at once, and below which number they are: PyTorch draws such numbers from 32 bits each.
_BLOCK, _WORDS = 4096, 2**28 - 1


class Draws:
    """Choices that depend on the seed alone.

    seed   as TorchGenerator takes it
    """

    def __init__(self, seed: int) -> None:
        self._rng = TorchGenerator(seed)
        self._words: list[int] = []

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included; all are equally likely but for a few parts in 2^28."""
        if not self._words:
            self._words = self._rng.randint(0, _WORDS, _BLOCK).tolist()
        return low + self._words.pop() % (high - low + 1)

    def one_of(self, items: Sequence[Item]) -> Item:
        """One of the items; each is as likely as the others."""
        return items[self.number(0, len(items) - 1)]

    def some_of(self, items: Iterable[Item], count: int) -> list[Item]:
        """So many different ones of the items, in random order."""
        left = list(items)
        return [left.pop(self.number(0, len(left) - 1)) for _ in range(count)]

    def happens(self, percent: int) -> bool:
        """True in so many cases of a hundred."""
        return self.number(1, 100) <= percent
