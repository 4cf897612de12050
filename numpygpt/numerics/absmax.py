"""Absmax: whole numbers times a step, so that the largest value of a block has the largest whole number.

    x         any shape    the values
    a         largest |x| of a block
    Q         127 for 8 bits, 7 for 4 bits
    codes     whole numbers from -Q to Q; of the 2^bits there could be, -Q - 1 is not used, so that the range is
              symmetric and zero is zero

    (1)  code = round(x Q / a)        to the nearest, ties to even
    (2)  x'   = code a / Q

With "row" as the size of a block this is what LLM.int8 does to each row of a weight (Dettmers et al. 2022,
arXiv:2208.07339, section 2.1), and bitsandbytes' int8_vectorwise_quant gives the same codes and constants.

Error. The step is s = a / Q. Rounding is off by at most s/2, and if it is uniform in between, by s²/12 in the square:

    E (x' - x)² = 1/s ∫ from -s/2 to s/2 of e² de = s²/12

In a block of 64 normal values of deviation σ, a is about 2.6 σ. So the root of the mean square error is about
2.6 σ / (Q sqrt 12): 0.006 σ with 8 bits, 0.11 σ with 4. With 8 bits, one outlier of 26 σ makes all errors of its block
ten times as large, and of no other block: this is why blocks are small.

Traps: the largest value instead of the largest absolute one clips the negative side. A block of zeros has a = 0, and
0/0 must not become its code. For a below SMALLEST, Q / a would be infinite: such a block is multiplied by LIFT before
(1), which changes no digit. Below 1e-36 float32 itself has few digits: a / Q is then off by up to 0.7e-45, and x' by up
to Q times as much.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.numerics import blocks
from numpygpt.shapes import Array, Inexact

#: By a smaller number, 127 could not be divided without an overflow of float32.
SMALLEST = np.float32(1e-36)
#: A power of two that makes the smallest number of float32 larger than SMALLEST.
LIFT = np.float32(2**64)


class Absmax(NamedTuple):
    """An array in whole numbers, with the largest |value| of each block.

    codes        int8, flat; for 4 bits uint8, two codes in a byte, each code + 8
    absmax       float32, one for each block
    shape        the shape of the array
    block_size   how many values a block has; the last one may have fewer
    bits         8 or 4
    """

    codes: Array
    absmax: Inexact[Array, "blocks"]
    shape: tuple[int, ...]
    block_size: int
    bits: int

    def bytes(self) -> int:
        """The bytes of codes and constants."""
        return self.codes.nbytes + self.absmax.nbytes

    def children(self) -> dict[str, Any]:
        """The arrays, by name."""
        return {"codes": self.codes, "absmax": self.absmax}

    def with_children(self, by_name: dict[str, Any]) -> "Absmax":
        """The same with other arrays."""
        return self._replace(**by_name)


def largest_code(bits: int) -> int:
    """The Q of the formulas."""
    return 2 ** (bits - 1) - 1


def quantize(x: Any, bits: int = 8, block_size: int | str = "row") -> Absmax:
    """Quantize an array of float32 or float64, with the block sizes and errors of `numpygpt.numerics.blocks`."""
    values = blocks.checked(x)
    size = blocks.size_of_block(x.shape, block_size)
    absmax = blocks.largest_of_blocks(values, size)
    numbers, largest = values.copy(), absmax
    if (absmax < SMALLEST).any():
        lift = np.where(absmax < SMALLEST, LIFT, np.float32(1))
        blocks.scale(numbers, lift, size)
        largest = np.maximum(absmax * lift, SMALLEST)
    blocks.scale(numbers, np.float32(largest_code(bits)) / largest, size)
    np.rint(numbers, out=numbers)  # (1)
    codes = numbers.astype(np.int8) if bits == 8 else blocks.packed((numbers + 8).astype(np.uint8), 8)
    return Absmax(codes, absmax, x.shape, size, bits)


def steps(quantized: Absmax, dtype: Any) -> Array:
    """a / Q of each block."""
    return quantized.absmax.astype(dtype) / np.asarray(largest_code(quantized.bits), dtype)


def put_numbers(quantized: Absmax, start: int, out: Array) -> None:
    """Put the codes from number `start` on into `out`, which is flat, as numbers of its dtype."""
    if quantized.bits == 8:
        out[...] = quantized.codes[start : start + out.size]
    else:
        blocks.unpacked(quantized.codes, np.arange(-8, 8).astype(out.dtype), start, start + out.size, out)


def put_values(quantized: Absmax, start: int, out: Array) -> None:
    """Put the values from number `start` on into `out`, which is flat."""
    put_numbers(quantized, start, out)
    blocks.scale(out, steps(quantized, out.dtype), quantized.block_size, start)  # (2)
