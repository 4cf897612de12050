"""NF4, the 4-bit code for normal values: 16 levels at quantiles of the normal distribution.

A code is used best if each of its 16 numbers is as frequent as the others: so each level gets an equal share of the
values. For weights, which are nearly normal with the mean 0, the levels are quantiles of the normal distribution,
divided by the largest. Quantiles at equal probabilities would be symmetric and miss zero, which padding needs exactly.
So the two sides are made apart, one with 8 levels and one with 9, and the zero that both have is one of them:

    Φ⁻¹  the quantile function of the normal distribution (scipy.stats.norm.ppf)
    p    0.9677083 = (1 - 1/32 + 1 - 1/30) / 2, the outermost probability, as Φ⁻¹(1) is infinite

    (1)  positive   Φ⁻¹ of 9 equally spaced probabilities from p to 1/2
         negative   -Φ⁻¹ of 8 equally spaced probabilities from p to 1/2
         level      each of these / Φ⁻¹(p)

The constants below are these numbers in float32, as bitsandbytes has them; a test derives them by (1).

Source: Dettmers, Pagnoni, Holtzman, Zettlemoyer 2023, "QLoRA: Efficient Finetuning of Quantized LLMs",
arXiv:2305.14314, section 3 and appendix E.

Error, by formula (3) of `numpygpt.numerics.codebook` with the normal density φ: a block's largest |x| is a, and given
a, the other values are normal within -a, a. So the mean square error of n values is

    (2)  (n - 1) / n E over a of  sum over i of the integral from a m_i-1 to a m_i of (t - a l_i)² φ(t) dt / P(|t| < a)

For σ = 1 and n = 64 its root is 0.092, and that of absmax in 4 bits, whose levels are equally spaced, is 0.107. A test
computes the integral and measures both. NF4 is not the best 4-bit code: its levels are equally frequent, and those of
the least mean square error are not (Yoshida 2023, arXiv:2306.06965). The smaller the blocks, the smaller a, and the
more evenly x / a is spread: so in small blocks equal steps do better (bitsandbytes#2086). Of normal values, int4 is
better in blocks of 4, and zero-point, which has 16 steps for int4's 15, already in blocks of 64.
"""

import numpy as np

LEVELS = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
