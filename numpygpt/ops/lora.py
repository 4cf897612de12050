"""LoRA's side path: what a low-rank matrix adds to a projection (Hu et al. 2022, arXiv:2106.09685, section 4.1).

    x       (..., D)   input
    A       (R, D)     down to R features, R at most D and F
    B       (F, R)     up to F features
    scale   s          a constant: α/R as in the paper, or α/√R (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732)
    low     (..., R)   x in the R features
    y       (..., F)   what is added to the output of the projection

Forward, with the leading axes taken as N rows:

    (1)  low = x @ Aᵀ
    (2)  y = s low @ Bᵀ                                so y = x @ (s B @ A)ᵀ, and s B @ A has rank R

Derivation. Both steps are linear operations without a bias, so each has the gradients of `linear`, with s on the way:

    from (2):  d_B = s d_yᵀ @ low        d_low = s d_y @ B
    from (1):  d_A = d_lowᵀ @ x          d_x = d_low @ A

B begins at zero, so that the projection begins unchanged. Then d_A and d_x are zero too, and B alone moves in the first
step.

Saved: low, and x, A and B, each of these only if a gradient needs it. Nothing is copied. The matrix B @ A is never
computed: it would take F D numbers, and its products as much time as those of the projection itself.
Trap: the scale is α/R, not α. With α = R nobody sees the difference.
"""

from collections.abc import Collection
from typing import NamedTuple

from numpygpt.parallel import product
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    x: Inexact[Array, "... D"] | None
    low: Inexact[Array, "N R"]
    A: Inexact[Array, "R D"] | None
    B: Inexact[Array, "F R"] | None
    scale: float
    wants_up: bool


def forward(
    x: Inexact[Array, "*rows D"],
    A: Inexact[Array, "R D"],
    B: Inexact[Array, "F R"],
    *,
    scale: float,
    wanted: Collection[str] = ("x", "A", "B"),
) -> tuple[Inexact[Array, "*rows F"], Saved]:
    low = product(x.reshape(-1, x.shape[-1]), A.T)  # (1)
    y = product(scale * low, B.T)  # (2)
    saved = Saved(
        x if "A" in wanted else None,
        low,
        A if "x" in wanted else None,
        B if "A" in wanted or "x" in wanted else None,
        scale,
        "B" in wanted,
    )
    return y.reshape(*x.shape[:-1], len(B)), saved


class Gradients(NamedTuple):
    x: Inexact[Array, "... D"] | None
    A: Inexact[Array, "R D"] | None
    B: Inexact[Array, "F R"] | None


def backward(d_y: Inexact[Array, "*rows F"], saved: Saved) -> Gradients:
    x, low, A, B, scale, wants_up = saved
    d_rows = d_y.reshape(-1, d_y.shape[-1])
    d_B = product(d_rows.T, scale * low) if wants_up else None  # undoes (2)
    if B is None:
        return Gradients(None, None, d_B)
    d_low = scale * product(d_rows, B)
    d_A = None if x is None else product(d_low.T, x.reshape(-1, x.shape[-1]))  # undoes (1)
    d_x = None if A is None else product(d_low, A).reshape(*d_y.shape[:-1], -1)
    return Gradients(d_x, d_A, d_B)
