"""Quantile quantization: levels that are equally frequent in the array itself.

    x        any shape    the values, each divided by the largest |x| of its block
    K        the number of levels: 16 or 256
    F⁻¹      the quantile function of these fractions

    (1)  level_i = (F⁻¹(i / K) + F⁻¹((i + 1) / K)) / 2    for i = 0, ..., K - 1

Each code is used by one value in K, so that codes have as much entropy as their bits. No assumption on the distribution
is made; the price is that the levels have to be found by sorting, and stored. The code itself is then that of
`numpygpt.numerics.codebook`.

Source: Dettmers et al. 2022, arXiv:2110.02861, section 2.1 and equation 5. QLoRA (arXiv:2305.14314, equation 4) derives
NF4 from it, with the quantiles of the normal distribution in the place of F⁻¹.

Error. The outermost levels are the middles of wide intervals, so large values have large errors: quantile quantization
makes the codes equally frequent, not the errors small. Trap: zero is no level, unless it is frequent.
"""

from typing import Any

import numpy as np

from numpygpt.numerics import blocks, codebook
from numpygpt.shapes import Array


def levels(x: Any, count: int, block_size: int | str = 64) -> Array:
    """The levels of an array, in the order of their size, float32. Raises the errors of `numpygpt.numerics.blocks`."""
    values = blocks.checked(x)
    size = blocks.size_of_block(x.shape, block_size)
    absmax = np.maximum(blocks.largest_of_blocks(values, size), codebook.SMALLEST)
    fractions = values.copy()
    blocks.scale(fractions, 1 / absmax, size)
    ends = np.quantile(fractions, np.linspace(0, 1, count + 1)).astype(np.float32)
    return (ends[:-1] + ends[1:]) / np.float32(2)  # (1)


def quantize(x: Any, bits: int = 8, block_size: int | str = 64, *, double: bool = False) -> codebook.Codebook:
    """Quantize an array by its own levels, in 4 or 8 bits. The other arguments are those of `codebook.quantize`."""
    return codebook.quantize(x, levels(x, 2**bits, block_size), block_size, double=double)
