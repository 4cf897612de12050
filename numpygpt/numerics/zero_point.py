"""Zero-point: whole numbers from zero, a step, and the number that stands for zero.

    x          any shape    the values
    l, h       smallest and largest x of a block, or 0 if that is smaller or larger
    Q          255 for 8 bits, 15 for 4 bits
    codes      whole numbers from 0 to Q

    (1)  s    = (h - l) / Q
         z    = round(-l / s)
    (2)  code = round(x / s) + z        to the nearest, ties to even; clipped to 0, ..., Q
    (3)  x'   = (code - z) s

Zero is always in the range, and is exact: padding and dropped values stay zero. For values that are all positive, such
as those behind a ReLU, the step is half of absmax's. Weights lie around zero, but the largest and the smallest of a
block are seldom opposite: the range from one to the other is shorter than twice the larger of the two, by a tenth in
blocks of 64 normal values.

(1) is Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", arXiv:1712.05877, equations 1 and 12; LLM.int8 (arXiv:2208.07339, section 2.1) has it as zeropoint
quantization. For the same constants, PyTorch's fake_quantize_per_tensor_affine gives the same values.

Error. At most s/2, and s²/12 in the mean square, as of `numpygpt.numerics.absmax`. That z is rounded moves the range by
up to s/2. So l and h lie at most s/2 beyond it, and a value that is clipped is not off by more than others are.

Traps: without the clip a code of Q + 1 becomes 0 in a byte. 0 times a step is not the smallest value: z has to be
subtracted, from a type that has room for negative numbers.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.numerics import blocks
from numpygpt.shapes import Array, Inexact, Integer

#: The smallest step, PyTorch's: float32's epsilon.
SMALLEST = np.finfo(np.float32).eps


class ZeroPoint(NamedTuple):
    """An array in whole numbers, with a step and a zero for each block.

    codes        uint8, flat; for 4 bits two codes in a byte
    steps        float32, one for each block
    zeros        uint8, one for each block: the code of zero
    shape        the shape of the array
    block_size   how many values a block has; the last one may have fewer
    bits         8 or 4
    """

    codes: Integer[Array, "bytes"]
    steps: Inexact[Array, "blocks"]
    zeros: Integer[Array, "blocks"]
    shape: tuple[int, ...]
    block_size: int
    bits: int

    def bytes(self) -> int:
        """The bytes of codes and constants."""
        return self.codes.nbytes + self.steps.nbytes + self.zeros.nbytes

    def children(self) -> dict[str, Any]:
        """The arrays, by name."""
        return {"codes": self.codes, "steps": self.steps, "zeros": self.zeros}

    def with_children(self, by_name: dict[str, Any]) -> "ZeroPoint":
        """The same with other arrays."""
        return self._replace(**by_name)


def quantize(x: Any, bits: int = 8, block_size: int | str = "row") -> ZeroPoint:
    """Quantize an array of float32 or float64, with the block sizes and errors of `numpygpt.numerics.blocks`."""
    flat = blocks.checked(x)
    size = blocks.size_of_block(x.shape, block_size)
    lowest, highest = np.zeros((2, blocks.count(flat.size, size)), np.float32)
    for which, block in blocks.by_block(flat, size):
        lowest[which] = np.minimum(block.min(axis=1), 0)
        highest[which] = np.maximum(block.max(axis=1), 0)
    largest = np.float32(2**bits - 1)
    steps = np.maximum(highest / largest - lowest / largest, SMALLEST)
    zeros = np.clip(np.rint(-lowest / steps), 0, largest)  # (1)
    numbers = flat.copy()
    blocks.scale(numbers, 1 / steps, size)
    for which, block in blocks.by_block(np.rint(numbers, out=numbers), size):
        block += zeros[which, np.newaxis]
    codes = np.clip(numbers, 0, largest).astype(np.uint8)  # (2)
    if bits == blocks.NIBBLE:
        codes = blocks.packed(codes, int(zeros[-1]))
    return ZeroPoint(codes, steps, zeros.astype(np.uint8), x.shape, size, bits)


def put_values(quantized: ZeroPoint, start: int, out: Array) -> None:
    """Put the values from number `start` on into `out`, which is flat."""
    if quantized.bits == 8:
        out[...] = quantized.codes[start : start + out.size]
    else:
        blocks.unpacked(quantized.codes, np.arange(16).astype(out.dtype), start, start + out.size, out)
    for which, block in blocks.by_block(out, quantized.block_size, start):
        block -= quantized.zeros[which, np.newaxis].astype(out.dtype)
        block *= quantized.steps[which, np.newaxis].astype(out.dtype)  # (3)
