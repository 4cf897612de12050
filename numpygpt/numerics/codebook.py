"""Block-wise codes by a table of levels: which level is nearest to a value that is divided by its block's largest.

    x        any shape    the values
    a        largest |x| of a block
    levels   numbers from -1 to 1, 16 of them for codes of 4 bits, 256 for codes of 8 bits

    (1)  code = the number of the level nearest to x / a; of two as near, the lower level
    (2)  x'   = levels[code] a

The levels may lie anywhere: denser where values are more frequent (`nf4`, `quantile`), or with equal relative errors
(`dynamic`, `fp4`). Source: Dettmers, Lewis, Shleifer, Zettlemoyer 2022, "8-bit Optimizers via Block-wise Quantization",
arXiv:2110.02861, section 2.

Error. A value between two levels is off by at most half of their distance, times a. If x / a has the density p, and
l_i, l_i+1 are neighbors with the middle m_i, the mean square error is

    (3)  E (x' - x)² = a² sum over i of the integral from m_i-1 to m_i of (t - l_i)² p(t) dt

and, where p is nearly constant from m_i-1 to m_i, that is about a² sum of p_i d_i³ / 12 with d_i = m_i - m_i-1.

Double quantization. A constant of 32 bits in each block of 64 costs half a bit a weight. The constants are positive and
alike, so their mean is taken off, and the rest is quantized itself: 8-bit codes by the levels of `dynamic`, in blocks
of 256 constants (Dettmers, Pagnoni, Holtzman, Zettlemoyer 2023, QLoRA, arXiv:2305.14314, section 3):

    (4)  a' = dynamic[code of a - mean] largest |a - mean| of its block + mean

This costs 8 / 64 + 32 / (64 256) = 0.127 bits a weight instead of 0.5.

Trap of (4): the constant of a block with an outlier lifts the mean and the step of the constants beside it. Of 16,384
normal values with σ = 0.02, in 256 blocks, one of 1000 makes all other constants negative, so that the signs of their
values are lost; one of 100 makes the error of the other blocks 3.6 times as large. bitsandbytes does the same.

The arithmetic is bitsandbytes', so that codes and constants are equal: x is multiplied by 1 / a in whole blocks, and
divided by a in the tail; levels are told apart by their float32 middles.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.numerics import blocks, dynamic
from numpygpt.parallel import over_rows
from numpygpt.shapes import Array, Inexact, Integer

#: A block's largest value counts as at least this. In the tail this is also the constant.
SMALLEST = np.float32(1e-38)
#: How many constants a block of double quantization has.
CONSTANTS_IN_BLOCK = 256


class Codebook(NamedTuple):
    """An array as codes of levels, with the largest |value| of each block.

    codes        uint8, flat; for 16 levels, two codes in a byte
    absmax       float32, one for each block; or these constants quantized
    levels       float32, what the codes stand for
    shape        the shape of the array
    block_size   how many values a block has; the last one may have fewer
    """

    codes: Integer[Array, "bytes"]
    absmax: Any  # an array, or Constants
    levels: Inexact[Array, "levels"]
    shape: tuple[int, ...]
    block_size: int

    @property
    def bits(self) -> int:
        """How many bits a code has: 4 or 8."""
        return blocks.NIBBLE if len(self.levels) == 2**blocks.NIBBLE else 2 * blocks.NIBBLE

    def bytes(self) -> int:
        """The bytes of codes, constants and levels."""
        constants: int = self.absmax.nbytes if isinstance(self.absmax, np.ndarray) else self.absmax.bytes()
        return self.codes.nbytes + constants + self.levels.nbytes

    def children(self) -> dict[str, Any]:
        """The arrays, by name; those of double quantization are `absmax.codes`, `absmax.absmax`, ..."""
        return {"codes": self.codes, "absmax": self.absmax, "levels": self.levels}

    def with_children(self, by_name: dict[str, Any]) -> "Codebook":
        """The same with other arrays."""
        return self._replace(**by_name)


class Constants(NamedTuple):
    """The constants of blocks after double quantization.

    rest   what is left of them without their mean, quantized
    mean   (1,)
    """

    rest: Codebook
    mean: Inexact[Array, "1"]

    def bytes(self) -> int:
        """The bytes of all arrays, without the levels of the dynamic code, which all share."""
        return self.rest.codes.nbytes + self.rest.absmax.nbytes + self.mean.nbytes


def quantize(x: Any, levels: Array, block_size: int | str = 64, *, double: bool = False) -> Codebook:
    """Quantize an array of float32 or float64.

    levels       16 or 256 float32 numbers in the order of their codes
    block_size   as in `numpygpt.numerics.blocks`, with its errors
    double       whether the constants are quantized too
    """
    values = blocks.checked(x)
    size = blocks.size_of_block(x.shape, block_size)
    absmax = blocks.largest_of_blocks(values, size)
    if values.size % size:
        absmax[-1] = max(absmax[-1], SMALLEST)
    codes = np.empty(values.size, np.uint8)

    def code(block: Array, a: Array, out: Array) -> None:
        fractions = block * (1 / a) if block.shape[1] == size else block / a
        out[...] = nearest(fractions, levels)

    for (which, block), (_, out) in zip(blocks.by_block(values, size), blocks.by_block(codes, size), strict=True):
        over_rows(code, block, np.maximum(absmax[which, np.newaxis], SMALLEST), out)
    if len(levels) == 2**blocks.NIBBLE:
        codes = blocks.packed(codes, int(nearest(np.zeros(1, np.float32), levels)[0]))
    return Codebook(codes, doubled(absmax) if double else absmax, levels, x.shape, size)


def nearest(fractions: Array, levels: Array) -> Array:
    """The code of the level nearest to each number; of two as near, the lower level. uint8, in the numbers' shape.

    That is the number of the middles that lie below. To count them one after another takes a sixth of the time of a
    binary search in 16 levels, whose branches no processor foresees.
    """
    order = np.argsort(levels, kind="stable")
    middles = (levels[order][:-1] + levels[order][1:]) / np.float32(2)
    if len(levels) > 2**blocks.NIBBLE:
        return order.astype(np.uint8)[np.searchsorted(middles, fractions, side="left")]  # (1)
    below = np.zeros(fractions.shape, np.uint8)
    for middle in middles:
        below += fractions > middle  # (1)
    return order.astype(np.uint8)[below]


def put_levels(quantized: Codebook, start: int, out: Array) -> None:
    """Put the levels of the codes from number `start` on, which are not scaled, into `out`, which is flat."""
    levels = quantized.levels.astype(out.dtype)
    if quantized.bits == blocks.NIBBLE:
        blocks.unpacked(quantized.codes, levels, start, start + out.size, out)
    else:
        np.take(levels, quantized.codes[start : start + out.size], out=out, mode="clip")


def put_values(quantized: Codebook, start: int, out: Array) -> None:
    """Put the values from number `start` on into `out`, which is flat."""
    put_levels(quantized, start, out)
    first, last = start // quantized.block_size, blocks.count(start + out.size, quantized.block_size)
    absmax = constants(quantized, first, last).astype(out.dtype)
    blocks.scale(out, absmax, quantized.block_size, start % quantized.block_size)  # (2)


# Double quantization


def doubled(absmax: Array) -> Constants:
    """The constants of blocks, quantized."""
    mean = absmax.mean(keepdims=True)
    return Constants(quantize(absmax - mean, dynamic.LEVELS, CONSTANTS_IN_BLOCK), mean)


def constants(quantized: Codebook, first: int, last: int) -> Array:
    """The largest |value| of the blocks `first` to `last`, whether they are quantized themselves or not."""
    if isinstance(quantized.absmax, np.ndarray):
        return quantized.absmax[first:last]
    rest, mean = quantized.absmax
    absmax = np.empty(last - first, mean.dtype)
    put_values(rest, first, absmax)
    absmax += mean  # (4)
    return absmax
