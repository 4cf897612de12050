"""Sinusoidal positions: a fixed vector for each position (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

    P   (C, D)   the table, D even; row t stands where a learned position embedding has its row t

    (1)  w[i] = 10000^(-2i / D)                    D/2 frequencies, from 1 down to nearly 1/10000
    (2)  P[t, 2i] = sin(t w[i]),  P[t, 2i + 1] = cos(t w[i])

A pair (2i, 2i + 1) is the hand of a clock that turns by w[i] a token: the first tells neighbors apart, the last distant
parts of a text. Moving on by k tokens turns every hand by a fixed angle, whatever t is,

    P[t + k, 2i]     =  cos(k w[i]) P[t, 2i] + sin(k w[i]) P[t, 2i + 1]
    P[t + k, 2i + 1] = -sin(k w[i]) P[t, 2i] + cos(k w[i]) P[t, 2i + 1]

so that a distance between tokens is one linear map, which attention can learn.

There is no backward: P depends on no input and no parameter.
Traps: all sines before all cosines is another order of the features; an angle rounded to float32 is off by up to
C / 2^25, so the table is computed in float64 and rounded once. The paper multiplies the token embeddings by sqrt(D)
(section 3.4); this model does not, because its embeddings start at N(0, 1), about as large as the sines.
"""

from typing import Any

import numpy as np

from numpygpt.shapes import Array, Inexact

LONGEST_WAVE = 10_000.0


def table(context_length: int, emb_dim: int, dtype: Any) -> Inexact[Array, "{context_length} {emb_dim}"]:
    """P for positions 0 to context_length - 1."""
    frequencies = LONGEST_WAVE ** (-np.arange(0, emb_dim, 2) / emb_dim)  # (1)
    angles = np.arange(context_length)[:, np.newaxis] * frequencies
    sines_and_cosines = np.empty((context_length, emb_dim), dtype)
    sines_and_cosines[:, 0::2] = np.sin(angles)  # (2)
    sines_and_cosines[:, 1::2] = np.cos(angles)
    return sines_and_cosines
