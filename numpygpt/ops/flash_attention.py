"""Attention tile by tile: the same values as `attention`'s, in memory that grows with T, not with T².

FlashAttention (Dao et al. 2022, arXiv:2205.14135, section 3.1; the backward as in Dao 2023, arXiv:2307.08691,
section 3.1), with the online softmax of Milakov & Gimelshein 2018 (arXiv:1805.02867, section 3). Symbols and shapes are
`attention`'s:

    queries, keys, values   q (B, H, T, K), k and v (B, H, S, K)
    context                 y (B, H, T, K)
    highest, total          h and l (B, H, T, 1)   the softmax of each query: its largest score, and the sum of
                                                   exp(score - h)

The scores are never together in memory. For a tile of queries, the tiles of keys are gone through once. A tile in which
no query may see a key is not computed, because it holds masked scores only: in causal attention, one past the diagonal.

Forward, for each tile of queries, with h = -inf, l = 0 and a = 0 to begin with; for each tile of keys:

    (1)  s = q @ kᵀ / sqrt(K)                      -inf where the query may not see the key
    (2)  h' = max(h, max(s))
    (3)  e = exp(s - h')
    (4)  l <- l * exp(h - h') + sum(e)             what was summed under the old h is put under the new one
    (5)  a <- a * exp(h - h') + dropout(e) @ v     dropout(e) = e * m / (1 - p), with the mask m
    (6)  h <- h'

and after the last tile

    (7)  y = a / l

(4) and (5) hold because exp(s - h) exp(h - h') = exp(s - h'), so after each tile l and a are the sums over all keys so
far; after the last, e / l is the softmax w of the whole row, and y = dropout(w) @ v.

Derivation. `attention` and `softmax` derive, with u = dropout(w) and d_w = d_u * m / (1 - p) where d_u = d_y @ vᵀ,

    d_v = uᵀ @ d_y      d_s = w * (d_w - sum(d_w * w))      d_q = d_s @ k / sqrt(K)      d_k = d_sᵀ @ q / sqrt(K)

The sum runs over all keys of a query, but needs none of them. With <a, b> for the sum over the last axis alone, a
number for each query:

    sum(d_w * w) = sum(d_u * u) = <d_y @ vᵀ, u> = <d_y, u @ v> = <d_y, y>

With w = e / l, and g = d_y / l dividing once a query what would be divided once a score,

    (8)  e = exp(s - h)                            s and e are formed again, e now with the last h
    (9)  d_v = dropout(e)ᵀ @ g
    (10) d_s = e * (g @ vᵀ * m / (1 - p) - <g, y>)

Saved: q, k, v, the masks, y, h and l. Only the masks are of size T x S; they take a byte an element.
Traps: what was summed before a larger score came must shrink with it; h and l are kept apart, because log l + h is
rounded to the size of h, which at scores of 1e5 is a hundredth; a tile on the diagonal needs the mask, and one below it
does not; for a query that may see no key, h stays -inf, l is taken as 1 in the place of 0, and the context is 0.
"""

import math
from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

import numpy as np

from numpygpt.ops import dropout
from numpygpt.ops.visible import Visible, hidden
from numpygpt.parallel import in_parallel, over_rows, product, shares
from numpygpt.shapes import Array, Bool, Inexact

#: Queries, and keys, of a tile. A forward and a backward of 12 heads of 1024 tokens take 117 ms with tiles of 64, 98 of
#: 128, 85 of 256 and 104 of 512, on two cores; `attention` takes 115, and at 256 tokens 16 to this file's 19.
TILE = 256


class Saved(NamedTuple):
    queries: Inexact[Array, "B H T K"]
    keys: Inexact[Array, "B H S K"]
    values: Inexact[Array, "B H S K"]
    visible: Literal["causal", "all"] | Bool[Array, "B 1 T S"]
    keep: Bool[Array, "B H T S"] | None
    drop_rate: float
    tile: int
    wanted: Collection[str]
    context: Inexact[Array, "B H T K"]
    highest: Inexact[Array, "B H T 1"]
    total: Inexact[Array, "B H T 1"]


def forward(
    queries: Inexact[Array, "B H T K"],
    keys: Inexact[Array, "B H S K"],
    values: Inexact[Array, "B H S K"],
    *,
    visible: Literal["causal", "all"] | Bool[Array, "B 1 T S"] = "causal",
    keep: Bool[Array, "B H T S"] | None = None,
    drop_rate: float = 0.0,
    tile: int = TILE,
    wanted: Collection[str] = ("queries", "keys", "values"),
) -> tuple[Inexact[Array, "B H T K"], Saved]:
    """`visible` says which keys a query may see (`numpygpt.ops.visible`)."""
    B, H, T, K = queries.shape
    past = keys.shape[2] - T
    dtype = np.result_type(queries, keys, values)
    context = np.zeros((B, T, H, K), dtype).swapaxes(1, 2)  # merging its heads costs no copy
    highest = np.full((B, H, T, 1), -np.inf, dtype)
    total = np.zeros((B, H, T, 1), dtype)

    def online_softmax(scores: Array, shrink: Array, highest: Array, total: Array) -> None:
        new_highest = np.maximum(highest, scores.real.max(axis=-1, keepdims=True))  # (2)
        shift = np.where(new_highest == -np.inf, 0, new_highest)  # no key seen so far: -inf - -inf would be NaN
        scores -= shift
        np.exp(scores, out=scores)  # (3)
        np.exp(highest - shift, out=shrink)
        total *= shrink
        total += scores.sum(axis=-1, keepdims=True)  # (4)
        highest[...] = new_highest  # (6)

    def some_heads(heads: slice) -> None:
        q, k, v, y = (array[:, heads] for array in (queries, keys, values, context))
        for t, key_tiles in _tiles(visible, T, past, tile):
            a, h, sum_e = y[:, :, t], highest[:, heads, t].copy(), total[:, heads, t].copy()
            shrink = np.empty_like(h)
            scaled = q[:, :, t] * (1 / math.sqrt(K))
            for s in key_tiles:
                e = _masked_scores(scaled, k[:, :, s], hidden(visible, t, s, past))  # (1)
                over_rows(online_softmax, e, shrink, h, sum_e)
                dropped, _ = dropout.forward(e, _part(keep, heads, t, s), drop_rate=drop_rate)
                a *= shrink
                a += product(dropped, v[:, :, s])  # (5)
            sum_e[sum_e == 0] = 1  # of a query that may see no key
            a /= sum_e  # (7)
            highest[:, heads, t], total[:, heads, t] = h, sum_e

    in_parallel(some_heads, shares(H))
    saved = Saved(queries, keys, values, visible, keep, drop_rate, tile, wanted, context, highest, total)
    return context, saved


class Gradients(NamedTuple):
    queries: Inexact[Array, "B H T K"] | None
    keys: Inexact[Array, "B H S K"] | None
    values: Inexact[Array, "B H S K"] | None


def backward(d_context: Inexact[Array, "B H T K"], saved: Saved) -> Gradients:
    queries, keys, values, visible, keep, drop_rate, tile, wanted, context, highest, total = saved
    H, T, K = queries.shape[1:]
    past = keys.shape[2] - T
    gradients = Gradients(
        *(
            np.zeros(array.shape, d_context.dtype) if name in wanted else None
            for name, array in zip(Gradients._fields, (queries, keys, values), strict=True)
        )
    )

    def to_exponentials(e: Array, highest: Array) -> None:
        e -= np.where(highest == -np.inf, 0, highest)
        np.exp(e, out=e)

    def to_d_scores(d_scores: Array, e: Array, g_dot_y: Array) -> None:
        d_scores -= g_dot_y
        d_scores *= e

    def some_heads(heads: slice) -> None:
        q, k, v, y, d_y = (array[:, heads] for array in (queries, keys, values, context, d_context))
        d_q, d_k, d_v = (None if gradient is None else gradient[:, heads] for gradient in gradients)
        for t, key_tiles in _tiles(visible, T, past, tile):
            scaled = q[:, :, t] * (1 / math.sqrt(K))
            g = d_y[:, :, t] / total[:, heads, t]
            g_dot_y = (g * y[:, :, t]).sum(axis=-1, keepdims=True)
            for s in key_tiles:
                e = _masked_scores(scaled, k[:, :, s], hidden(visible, t, s, past))
                over_rows(to_exponentials, e, highest[:, heads, t])  # (8)
                dropped, mask = dropout.forward(e, _part(keep, heads, t, s), drop_rate=drop_rate)
                _add_product(d_v, s, dropped.mT, g)  # (9)
                if d_q is None and d_k is None:
                    continue
                d_s = dropout.backward(product(g, v[:, :, s].mT), mask).x
                over_rows(to_d_scores, d_s, e, g_dot_y)  # (10)
                _add_product(d_q, t, d_s, k[:, :, s])  # undoes (1)
                _add_product(d_k, s, d_s.mT, scaled)

    in_parallel(some_heads, shares(H))
    if gradients.queries is not None:
        np.multiply(gradients.queries, 1 / math.sqrt(K), out=gradients.queries)
    return gradients


def _tiles(visible: Visible, queries: int, past: int, tile: int) -> Iterator[tuple[slice, list[slice]]]:
    """Tiles of queries, and for each the tiles of keys of which its queries may see any."""
    for start in range(0, queries, tile):
        t = slice(start, min(start + tile, queries))
        end = past + (t.stop if isinstance(visible, str) and visible == "causal" else queries)
        key_tiles = [slice(key, min(key + tile, end)) for key in range(0, end, tile)]
        if isinstance(visible, np.ndarray):
            key_tiles = [s for s in key_tiles if visible[:, :, t, s].any()]
        yield t, key_tiles


def _masked_scores(scaled: Array, keys: Array, unseen: Array | None) -> Array:
    scores = product(scaled, keys.mT)
    if unseen is not None:
        np.copyto(scores, -np.inf, where=unseen)
    return scores


def _add_product(gradient: Array | None, tokens: slice, a: Array, b: Array) -> None:
    """Add a @ b to the rows of these tokens, if the gradient is wanted."""
    if gradient is not None:
        gradient[:, :, tokens] += product(a, b)


def _part(keep: Array | None, heads: slice, t: slice, s: slice) -> Array | None:
    return None if keep is None else keep[:, heads, t, s]
