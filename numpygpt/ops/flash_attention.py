"""Causal attention tile by tile: `attention`'s numbers in memory that grows with T, not with T².

FlashAttention (Dao et al. 2022, arXiv:2205.14135, section 3.1; the backward as in Dao 2023, arXiv:2307.08691,
section 3.1), with the online softmax of Milakov & Gimelshein 2018 (arXiv:1805.02867, section 3). Symbols and shapes are
`attention`'s:

    queries, keys, values   q (B, H, T, K), k and v (B, H, S, K)
    context                 z (B, H, T, K)
    highest, total          h and l (B, H, T, 1)   the softmax of each query: its largest score, and the sum of
                                                   exp(score - h)

The scores are never together in memory. For a tile of queries, the tiles of keys up to the diagonal are gone through
once; tiles past it hold nothing but masked scores and are not computed.

Forward, for each tile of queries, with h = -inf, l = 0 and a = 0 to begin with; for each tile of keys:

    (1)  s = q kᵀ / sqrt(K)                        -inf where the key is later than the query
    (2)  h' = max(h, max(s))
    (3)  e = exp(s - h')
    (4)  l <- l exp(h - h') + sum(e)               what was summed under the old h is put under the new one
    (5)  a <- a exp(h - h') + dropout(e) v         dropout(e) = e m / (1 - p), with the mask m
    (6)  h <- h'

and after the last tile

    (7)  z = a / l

(4) and (5) hold because exp(s - h) exp(h - h') = exp(s - h'), so after each tile l and a are the sums over all keys so
far; after the last, e / l is the softmax w of the whole row, and z = dropout(w) v.

Derivation. `attention` and `softmax` derive, with u = dropout(w) and d_w = d_u m / (1 - p) where d_u = d_z vᵀ,

    d_v = uᵀ d_z        d_s = w (d_w - sum(d_w w))        d_q = d_s k / sqrt(K)        d_k = d_sᵀ q / sqrt(K)

The sum runs over all keys, but needs none of them: sum(d_w w) = sum(d_u u) = <d_z v, u> = <d_z, u v> = <d_z, z>. With
w = e / l, and g = d_z / l dividing once a query what would be divided once a score,

    (8)  e = exp(s - h)                            s and e are formed again, e now with the last h
    (9)  d_v = dropout(e)ᵀ g
    (10) d_s = e (g vᵀ m / (1 - p) - <g, z>)

Saved: q, k, v, the mask, z, h and l: nothing of size T x S but the mask, a byte an element, where there is dropout.
Traps: what was summed before a larger score came must shrink with it; h and l are kept apart, for log l + h is rounded
to the size of h, which at scores of 1e5 is a hundredth; a tile on the diagonal needs the mask, one below it does not.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from numpygpt.ops import dropout
from numpygpt.parallel import over_rows
from numpygpt.shapes import Array, Bool, Inexact

#: Queries, and keys, of a tile. A forward and a backward of 12 heads of 1024 tokens take 117 ms with tiles of 64, 98 of
#: 128, 85 of 256 and 104 of 512, on two cores; `attention` takes 115, and at 256 tokens 16 to this file's 19.
TILE = 256


class Saved(NamedTuple):
    queries: Inexact[Array, "B H T K"]
    keys: Inexact[Array, "B H S K"]
    values: Inexact[Array, "B H S K"]
    keep: Bool[Array, "B H T S"] | None
    drop_rate: float
    tile: int
    context: Inexact[Array, "B H T K"]
    highest: Inexact[Array, "B H T 1"]
    total: Inexact[Array, "B H T 1"]


def forward(
    queries: Inexact[Array, "B H T K"],
    keys: Inexact[Array, "B H S K"],
    values: Inexact[Array, "B H S K"],
    *,
    keep: Bool[Array, "B H T S"] | None = None,
    drop_rate: float = 0.0,
    tile: int = TILE,
) -> tuple[Inexact[Array, "B H T K"], Saved]:
    B, H, T, K = queries.shape
    context = np.zeros((B, T, H, K), queries.dtype).swapaxes(1, 2)  # merging its heads costs no copy
    highest = np.full((B, H, T, 1), -np.inf, queries.dtype)
    total = np.zeros((B, H, T, 1), queries.dtype)

    def online_softmax(scores: Array, shrink: Array, highest: Array, total: Array) -> None:
        new_highest = np.maximum(highest, scores.real.max(axis=-1, keepdims=True))  # (2)
        scores -= new_highest
        np.exp(scores, out=scores)  # (3)
        np.exp(highest - new_highest, out=shrink)
        total *= shrink
        total += scores.sum(axis=-1, keepdims=True)  # (4)
        highest[...] = new_highest  # (6)

    for t, key_tiles in _tiles(T, keys.shape[2], tile):
        z, h, sum_e = context[:, :, t], highest[:, :, t].copy(), total[:, :, t].copy()
        shrink = np.empty_like(h)
        scaled = queries[:, :, t] * (1 / math.sqrt(K))
        for s in key_tiles:
            e = _masked_scores(scaled, keys[:, :, s], t, s, keys.shape[2] - T)  # (1)
            over_rows(online_softmax, *map(_rows, (e, shrink, h, sum_e)))
            dropped, _ = dropout.forward(e, _part(keep, t, s), drop_rate=drop_rate)
            z *= shrink
            z += dropped @ values[:, :, s]  # (5)
        z /= sum_e  # (7)
        highest[:, :, t], total[:, :, t] = h, sum_e
    return context, Saved(queries, keys, values, keep, drop_rate, tile, context, highest, total)


class Gradients(NamedTuple):
    queries: Inexact[Array, "B H T K"]
    keys: Inexact[Array, "B H S K"]
    values: Inexact[Array, "B H S K"]


def backward(d_context: Inexact[Array, "B H T K"], saved: Saved) -> Gradients:
    queries, keys, values, keep, drop_rate, tile, context, highest, total = saved
    T, S, K = queries.shape[2], keys.shape[2], queries.shape[3]
    d_queries, d_keys, d_values = (np.zeros(array.shape, array.dtype) for array in (queries, keys, values))

    def to_exponentials(e: Array, highest: Array) -> None:
        e -= highest
        np.exp(e, out=e)

    def to_d_scores(d_scores: Array, e: Array, g_dot_z: Array) -> None:
        d_scores -= g_dot_z
        d_scores *= e

    for t, key_tiles in _tiles(T, S, tile):
        scaled = queries[:, :, t] * (1 / math.sqrt(K))
        g = d_context[:, :, t] / total[:, :, t]
        g_dot_z = (g * context[:, :, t]).sum(axis=-1, keepdims=True)
        for s in key_tiles:
            e = _masked_scores(scaled, keys[:, :, s], t, s, S - T)
            over_rows(to_exponentials, _rows(e), _rows(highest[:, :, t]))  # (8)
            dropped, mask = dropout.forward(e, _part(keep, t, s), drop_rate=drop_rate)
            d_values[:, :, s] += dropped.mT @ g  # (9)
            d_scores = dropout.backward(_product(g, values[:, :, s].mT), mask).x
            over_rows(to_d_scores, *map(_rows, (d_scores, e, g_dot_z)))  # (10)
            d_queries[:, :, t] += d_scores @ keys[:, :, s]  # undoes (1)
            d_keys[:, :, s] += d_scores.mT @ scaled
    d_queries *= 1 / math.sqrt(K)
    return Gradients(d_queries, d_keys, d_values)


def _tiles(queries: int, keys: int, tile: int) -> Iterator[tuple[slice, list[slice]]]:
    """Tiles of queries, and for each the tiles of keys that are not later than its last query."""
    for start in range(0, queries, tile):
        stop = min(start + tile, queries)
        end = keys - queries + stop
        yield slice(start, stop), [slice(key, min(key + tile, end)) for key in range(0, end, tile)]


def _masked_scores(scaled: Array, keys: Array, t: slice, s: slice, cached: int) -> Array:
    """A tile of scores; the queries' positions follow those of the `cached` keys."""
    scores = _product(scaled, keys.mT)
    if s.stop > cached + t.start + 1:
        later = np.arange(s.start, s.stop) > cached + np.arange(t.start, t.stop)[:, None]
        np.copyto(scores, -np.inf, where=later)
    return scores


def _part(keep: Array | None, t: slice, s: slice) -> Array | None:
    return None if keep is None else keep[:, :, t, s]


def _product(a: Array, b: Array) -> Array:
    """The last axis is the fastest, however the operands lie in memory: its rows are a view, to be changed in place."""
    product: Array = np.matmul(a, b, order="C")
    return product


def _rows(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])
