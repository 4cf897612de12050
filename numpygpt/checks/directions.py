"""The directions along which a gradient is compared: each element, or sampled ones and random directions."""

from collections.abc import Iterator

import numpy as np

from numpygpt.shapes import Array

#: How many random directions of a large tensor there are.
DIRECTIONS = 8
#: The size up to which every element of a tensor is compared, and how many elements are sampled from a larger one.
EVERY_ELEMENT = 200
SAMPLED = 40


class Directions:
    """The directions along which a gradient of this shape is compared.

    These are the units of some elements, or of all of them, and then random ones.
    """

    def __init__(self, shape: tuple[int, ...], rng: np.random.Generator) -> None:
        self.shape = shape
        self.size = size = int(np.prod(shape))
        self.all_elements = size <= EVERY_ELEMENT
        sampled = np.sort(rng.choice(size, min(size, SAMPLED), replace=False))
        self.elements = np.arange(size) if self.all_elements else sampled
        self._seeds = [] if self.all_elements else [int(seed) for seed in rng.integers(2**32, size=DIRECTIONS)]

    def __iter__(self) -> Iterator[Array]:
        for element in self.elements:
            unit = np.zeros(self.shape)
            unit.flat[element] = 1.0
            yield unit
        yield from self._random()

    def _random(self) -> Iterator[Array]:
        return (np.asarray(np.random.default_rng(seed).standard_normal(self.shape)) for seed in self._seeds)

    def of(self, gradient: Array) -> Array:
        """The products of a gradient with each direction."""
        return np.array([*gradient.ravel()[self.elements], *((gradient * v).sum() for v in self._random())])

    def parts(self, kinks: Array) -> list[Array]:
        """Which products are judged together, without those at a kink: the elements', then the random directions'."""
        are_elements = np.arange(len(kinks)) < len(self.elements)
        return [are_elements & ~kinks] if self.all_elements else [are_elements & ~kinks, ~are_elements & ~kinks]

    def compared(self) -> str:
        """What is compared, in words."""
        if self.all_elements:
            return "each element"
        return f"{len(self.elements)} elements, {len(self._seeds)} directions"
