"""Linear: a matrix product and a bias, on the last axis.

    x        (..., D)   input
    weight   (F, D)     W, out x in, as PyTorch keeps it
    bias     (F)        b, optional
    y        (..., F)   output

Forward, with the leading axes taken as N rows:

    (1)  y = x @ Wᵀ + b

Derivation, from dL = <d_y, dy> with dy = dx @ Wᵀ + x @ dWᵀ + 1 @ dbᵀ, where 1 is a column of N ones:

    <d_y, dx @ Wᵀ> = <d_y @ W, dx>                                    d_x = d_y @ W
    <d_y, x @ dWᵀ> = <xᵀ @ d_y, dWᵀ> = <d_yᵀ @ x, dW>                 d_W = d_yᵀ @ x
    <d_y, 1 @ dbᵀ> = <1ᵀ @ d_y, dbᵀ>                                  d_b = the sum of d_y over its rows

Saved: x for d_W and W for d_x, the two factors, each only if that gradient is wanted. Neither is copied.
Trap: a square W stored the other way round (in x out) has the right shape and gives the wrong product.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from numpygpt.parallel import product
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    x: Inexact[Array, "... D"] | None
    weight: Inexact[Array, "F D"] | None
    bias: bool


def forward(
    x: Inexact[Array, "*rows D"],
    weight: Inexact[Array, "F D"],
    bias: Inexact[Array, "F"] | None = None,
    *,
    wanted: Collection[str] = ("x", "weight", "bias"),
) -> tuple[Inexact[Array, "*rows F"], Saved]:
    y = product(x.reshape(-1, x.shape[-1]), weight.T)  # (1)
    if bias is not None:
        y = np.add(y, bias, out=y if np.result_type(y, bias) == y.dtype else None)
    saved = Saved(
        x if "weight" in wanted else None,
        weight if "x" in wanted else None,
        bias is not None and "bias" in wanted,
    )
    return y.reshape(*x.shape[:-1], len(weight)), saved


class Gradients(NamedTuple):
    x: Inexact[Array, "... D"] | None
    weight: Inexact[Array, "F D"] | None
    bias: Inexact[Array, "F"] | None


def backward(d_y: Inexact[Array, "*rows F"], saved: Saved) -> Gradients:
    x, weight, bias = saved
    d_rows = d_y.reshape(-1, d_y.shape[-1])
    return Gradients(  # undoes (1)
        x=None if weight is None else product(d_rows, weight).reshape(*d_y.shape[:-1], -1),
        weight=None if x is None else product(d_rows.T, x.reshape(-1, x.shape[-1])),
        bias=d_rows.sum(axis=0) if bias else None,
    )
