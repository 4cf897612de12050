"""Embedding: one row of a table for each id.

    ids      (...)      integers in [0, V)
    weight   (V, D)     E, the table
    y        (..., D)   output

Forward, for each position n:

    (1)  y[n] = E[ids[n]]

which is the product y = P @ E with the N x V matrix P that has a one at (n, ids[n]) and zeros elsewhere.

Derivation, from dL = <d_y, dy> with dy = P @ dE:

    <d_y, P @ dE> = <Pᵀ @ d_y, dE>                                    d_E = Pᵀ @ d_y
    (Pᵀ @ d_y)[v] is the sum of d_y[n] over all n with ids[n] = v

Saved: the ids and the table's shape.
Traps: `d_E[ids] += d_y` keeps one of several equal ids; a negative id would silently count from the end.
"""

from typing import NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.shapes import Array, Inexact, Integer


class Saved(NamedTuple):
    ids: Integer[Array, "..."]
    weight_shape: tuple[int, int]


def forward(
    ids: Integer[Array, "*rows"], weight: Inexact[Array, "V D"]
) -> tuple[Inexact[Array, "*rows D"], Saved]:
    _refuse_ids_outside_the_table(ids, len(weight))
    return weight[ids], Saved(ids, weight.shape)  # (1)


class Gradients(NamedTuple):
    weight: Inexact[Array, "V D"]


def backward(d_y: Inexact[Array, "... D"], saved: Saved) -> Gradients:
    d_weight = np.zeros(saved.weight_shape, d_y.dtype)
    if saved.ids.size:
        order = np.argsort(saved.ids, axis=None, kind="stable")  # undoes (1): equal ids side by side, their rows summed
        present, first = np.unique(saved.ids.reshape(-1)[order], return_index=True)
        d_rows = d_y.reshape(-1, saved.weight_shape[1])
        d_weight[present] = np.add.reduceat(d_rows[order], first, axis=0)
    return Gradients(d_weight)


def _refuse_ids_outside_the_table(ids: Array, rows: int) -> None:
    outside = (ids < 0) | (ids >= rows)
    if outside.any():
        raise InputError(
            f"id {ids[outside][0]} is outside the table's {rows} rows; ids go from 0 to {rows - 1}: "
            f"was the text encoded with another tokenizer?"
        )
