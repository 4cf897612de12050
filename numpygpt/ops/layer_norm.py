"""LayerNorm over the last axis (Ba, Kiros & Hinton 2016, arXiv:1607.06450, section 3).

    x            (..., D)   input
    scale        (D)        g
    shift        (D)        b
    y            (..., D)   output
    normalized   (..., D)   z
    inv_std      (..., 1)   r

Forward, for each row, with mean(.) over its D features:

    (1)  c = x - mean(x)
    (2)  r = 1 / sqrt(mean(c²) + eps)              the biased variance, eps inside the root
    (3)  z = c r
    (4)  y = g z + b

Derivation, from dL = <d_y, dy>:

    dy = g dz + z dg + db                          d_z = d_y g
                                                   d_g = the sum of d_y z over rows, d_b = the sum of d_y over rows
    dz = r dc + c dr
    dr = -1/2 (mean(c²) + eps)^(-3/2) 2 mean(c dc) = -r³ mean(c dc) = -r² mean(z dc)
    c dr = -r z mean(z dc)                         since c r = z
    <d_z, dz> = <r d_z, dc> - <d_z, r z mean(z dc)> = <r (d_z - z mean(d_z z)), dc>
    dc = dx - mean(dx)                             <a, dx - mean(dx)> = <a - mean(a), dx>, and mean(z) = 0, so
    d_x = r (d_z - mean(d_z) - z mean(d_z z))

Each row of d_x is orthogonal to 1, for shifting x changes nothing; and, but for eps, to z, for
scaling c changes nothing.

Saved: z, r and g; x itself is not needed again.
Traps: the unbiased variance (D - 1); eps outside the root; E[x²] - E[x]², which cancels where the mean is large.
"""

from typing import NamedTuple

import numpy as np

from numpygpt.parallel import over_rows
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    normalized: Inexact[Array, "... D"]
    inv_std: Inexact[Array, "... 1"]
    scale: Inexact[Array, "D"]


def forward(
    x: Inexact[Array, "*rows D"],
    scale: Inexact[Array, "D"],
    shift: Inexact[Array, "D"],
    *,
    eps: float = 1e-5,
) -> tuple[Inexact[Array, "*rows D"], Saved]:
    y, normalized = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    inv_std = np.empty((*x.shape[:-1], 1), x.dtype)

    def block(x: Array, inv_std: Array, normalized: Array, y: Array) -> None:
        centered = x - x.mean(axis=-1, keepdims=True)  # (1)
        variance = (centered * centered).mean(axis=-1, keepdims=True)
        np.divide(1, np.sqrt(variance + eps), out=inv_std)  # (2)
        np.multiply(centered, inv_std, out=normalized)  # (3)
        np.multiply(scale, normalized, out=y)  # (4)
        y += shift

    over_rows(block, *(array.reshape(-1, array.shape[-1]) for array in (x, inv_std, normalized, y)))
    return y, Saved(normalized, inv_std, scale)


class Gradients(NamedTuple):
    x: Inexact[Array, "... D"]
    scale: Inexact[Array, "D"]
    shift: Inexact[Array, "D"]


def backward(d_y: Inexact[Array, "*rows D"], saved: Saved) -> Gradients:
    normalized, inv_std, scale = saved
    d_x = np.empty(d_y.shape, d_y.dtype)

    def block(d_y: Array, normalized: Array, inv_std: Array, d_x: Array) -> tuple[Array, Array]:
        d_normalized = d_y * scale  # undoes (4)
        along_z = (d_normalized * normalized).mean(axis=-1, keepdims=True)
        np.subtract(d_normalized, d_normalized.mean(axis=-1, keepdims=True), out=d_x)  # undoes (1)
        d_x -= normalized * along_z  # undoes (2)
        d_x *= inv_std  # undoes (3)
        return (d_y * normalized).sum(axis=0), d_y.sum(axis=0)

    sums = over_rows(block, *(array.reshape(-1, array.shape[-1]) for array in (d_y, normalized, inv_std, d_x)))
    d_scale, d_shift = (sum(parts[1:], start=parts[0]) for parts in zip(*sums, strict=True))
    return Gradients(d_x, d_scale, d_shift)
