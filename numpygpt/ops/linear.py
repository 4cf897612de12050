"""Linear: a matrix product and a bias, on the last axis.

    x        (..., D)   input
    weight   (F, D)     W, out x in, as PyTorch keeps it
    bias     (F)        b, optional
    y        (..., F)   output

Forward, with the leading axes taken as N rows:

    (1)  y = x Wᵀ + b

Derivation, from dL = <d_y, dy> with dy = dx Wᵀ + x dWᵀ + 1 dbᵀ (1 is a column of N ones):

    <d_y, dx Wᵀ> = <d_y W, dx>                                        d_x = d_y W
    <d_y, x dWᵀ> = <xᵀ d_y, dWᵀ> = <d_yᵀ x, dW>                       d_W = d_yᵀ x
    <d_y, 1 dbᵀ> = <d_yᵀ 1, db>                                       d_b = the sum of d_y over its rows

Saved: x and W, the two factors. Neither is copied.
Trap: a square W stored the other way round (in x out) has the right shape and gives the wrong product.
"""

from typing import NamedTuple

from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    x: Inexact[Array, "... D"]
    weight: Inexact[Array, "F D"]
    has_bias: bool


def forward(
    x: Inexact[Array, "*rows D"],
    weight: Inexact[Array, "F D"],
    bias: Inexact[Array, "F"] | None = None,
) -> tuple[Inexact[Array, "*rows F"], Saved]:
    y = x.reshape(-1, x.shape[-1]) @ weight.T  # (1)
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], len(weight)), Saved(x, weight, bias is not None)


class Gradients(NamedTuple):
    x: Inexact[Array, "... D"]
    weight: Inexact[Array, "F D"]
    bias: Inexact[Array, "F"] | None


def backward(d_y: Inexact[Array, "... F"], saved: Saved) -> Gradients:
    x, weight, has_bias = saved
    d_rows = d_y.reshape(-1, len(weight))
    return Gradients(
        x=(d_rows @ weight).reshape(x.shape),  # undoes (1)
        weight=d_rows.T @ x.reshape(-1, x.shape[-1]),
        bias=d_rows.sum(axis=0) if has_bias else None,
    )
