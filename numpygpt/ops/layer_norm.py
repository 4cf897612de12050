"""LayerNorm over the last axis (Ba, Kiros & Hinton 2016, arXiv:1607.06450, section 3).

    x            (..., D)   input
    scale        (D)        g
    shift        (D)        b, optional
    y            (..., D)   output
    centered     (..., D)   c
    inv_std      (..., 1)   r
    normalized   (..., D)   n

Forward, for each row, with mean(.) over its D features; every product is elementwise:

    (1)  c = x - mean(x)
    (2)  r = 1 / sqrt(mean(c²) + eps)              the biased variance, eps inside the root
    (3)  n = r * c
    (4)  y = g * n + b

Derivation, from dL = <d_y, dy>, undoing (4), then (3) with (2), then (1):

    dy = g * dn + n * dg + db                      d_n = d_y * g
                                                   d_g = the sum of d_y * n over rows, d_b = the sum of d_y over rows
    dn = r * dc + c * dr
    dr = -1/2 (mean(c²) + eps)^(-3/2) * 2 mean(c * dc) = -r³ * mean(c * dc) = -r² * mean(n * dc)
    c * dr = -r * n * mean(n * dc)                 since r * c = n
    <d_n, dn> = <r * d_n, dc> - <d_n, r * n * mean(n * dc)>
                                                   d_c = r * (d_n - n * mean(d_n * n))
    <d_c, dc> = <d_c, dx - mean(dx)>               d_x = d_c - mean(d_c)

Each row of d_x is orthogonal to 1, because shifting x changes nothing. Except for eps, it is also orthogonal to n,
because scaling c changes nothing.

Saved: n and r, and g; x itself is not needed again.
Traps: the unbiased variance (D - 1); eps outside the root; another eps than the weights were trained with; E[x²] -
E[x]², which cancels where the mean is large.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from numpygpt.parallel import over_rows
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    normalized: Inexact[Array, "... D"]
    inv_std: Inexact[Array, "... 1"]
    scale: Inexact[Array, "D"]
    wanted: Collection[str]


def forward(
    x: Inexact[Array, "*rows D"],
    scale: Inexact[Array, "D"],
    shift: Inexact[Array, "D"] | None = None,
    *,
    eps: float = 1e-5,
    wanted: Collection[str] = ("x", "scale", "shift"),
) -> tuple[Inexact[Array, "*rows D"], Saved]:
    given = [array for array in (x, scale, shift) if array is not None]
    y = np.empty(x.shape, np.result_type(*given))
    normalized = np.empty(x.shape, x.dtype)
    inv_std = np.empty((*x.shape[:-1], 1), x.dtype)

    def block(x: Array, inv_std: Array, normalized: Array, y: Array) -> None:
        centered = x - x.mean(axis=-1, keepdims=True)  # (1)
        variance = (centered * centered).mean(axis=-1, keepdims=True)
        np.divide(1, np.sqrt(variance + eps), out=inv_std)  # (2)
        np.multiply(centered, inv_std, out=normalized)  # (3)
        np.multiply(scale, normalized, out=y)  # (4)
        if shift is not None:
            y += shift

    over_rows(block, x, inv_std, normalized, y)
    if shift is None:
        wanted = [name for name in wanted if name != "shift"]
    return y, Saved(normalized, inv_std, scale, wanted)


class Gradients(NamedTuple):
    x: Inexact[Array, "... D"] | None
    scale: Inexact[Array, "D"] | None
    shift: Inexact[Array, "D"] | None


def backward(d_y: Inexact[Array, "*rows D"], saved: Saved) -> Gradients:
    normalized, inv_std, scale, wanted = saved
    d_x = np.empty(d_y.shape, d_y.dtype)

    def block(d_y: Array, normalized: Array, inv_std: Array, d_x: Array) -> tuple[Array | None, Array | None]:
        if "x" in wanted:
            d_normalized = d_y * scale  # undoes (4)
            along = (d_normalized * normalized).mean(axis=-1, keepdims=True)
            d_normalized -= normalized * along
            np.multiply(d_normalized, inv_std, out=d_x)  # undoes (3) and (2): d_x is d_centered here
            d_x -= d_x.mean(axis=-1, keepdims=True)  # undoes (1)
        d_scale = (d_y * normalized).sum(axis=0) if "scale" in wanted else None  # undoes (4), too
        d_shift = d_y.sum(axis=0) if "shift" in wanted else None
        return d_scale, d_shift

    d_scales, d_shifts = zip(*over_rows(block, d_y, normalized, inv_std, d_x), strict=True)
    return Gradients(d_x if "x" in wanted else None, _total(d_scales), _total(d_shifts))


def _total(parts: tuple[Array | None, ...]) -> Array | None:
    """The sum of the blocks' sums, or None if it is not wanted."""
    wanted = [part for part in parts if part is not None]
    return sum(wanted[1:], start=wanted[0]) if wanted else None
