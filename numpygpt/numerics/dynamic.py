"""The dynamic code: 256 levels from -1 to 1 with a decimal exponent, and the more digits the larger the number is.

    (1)  levels = 0, 1, and ± 10^(k - 6) m    for k = 0, ..., 6 and the 2^k numbers m
         m      = the middles of the 2^k equal parts of the interval from 0.1 to 1

Seven decades take part: the lowest has one level, the highest 64. So a value near a block's largest is off by at most
0.9 / 128 of the largest, and a value a million times smaller still has a level of its size.

Source: Dettmers 2016, "8-Bit Approximations for Parallelism in Deep Learning", arXiv:1511.04561, section 2.2, and
Dettmers et al. 2022, arXiv:2110.02861, section 2.2. bitsandbytes has it as create_dynamic_map. Block-wise quantization
by it is `numpygpt.numerics.codebook`'s.
"""

import numpy as np

from numpygpt.shapes import Array

#: How many decades there are.
DECADES = 7


def _levels() -> Array:
    """The levels in float32. The ends of the parts are rounded as torch.linspace does: from 0.1 up, or from 1 down."""
    lowest, highest = np.float32(0.1), np.float32(1)
    positive = [np.array([0, 1], np.float32)]
    for k in range(DECADES):
        parts, number = 2**k, np.arange(2**k + 1)
        step = np.float64(highest - lowest) / parts
        ends = np.where(number < (parts + 1) // 2, lowest + step * number, highest - step * (parts - number))
        ends = ends.astype(np.float32)
        middles = (ends[:-1] + ends[1:]) / np.float32(2)
        positive.append(np.float32(10.0 ** (k - DECADES + 1)) * middles)  # (1)
    return np.sort(np.concatenate([*positive, *(-levels for levels in positive[1:])]))


LEVELS = _levels()
