"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1), for all heads at once.

    queries        (B, H, T, K)   q
    keys           (B, H, S, K)   k        S = T; with a cache of earlier keys S > T,
    values         (B, H, S, K)   v        and the queries are the last T positions
    attn_scores    (B, H, T, S)   s
    attn_weights   (B, H, T, S)   w
    context        (B, H, T, K)   y

Forward, for each sequence and head:

    (1)  s = q @ kᵀ / sqrt(K)                      each query against each key
    (2)  s[t, j] = -inf where t may not see j      causal attention: where j is later than t
    (3)  w = softmax(s)
    (4)  u = dropout(w)
    (5)  y = u @ v

`precision` says in which formats the products, the softmax and the dropout run (`numpygpt.numerics.autocast`).

Derivation, from dL = <d_y, dy>:

    dy = du @ v + u @ dv                           d_u = d_y @ vᵀ,  d_v = uᵀ @ d_y
    d_w, d_s as dropout and softmax give them; where s is -inf, w is 0 and with it d_s = w * (...) is 0,
    so (2) needs no line of its own
    ds = (dq @ kᵀ + q @ dkᵀ) / sqrt(K)             d_q = d_s @ k / sqrt(K),  d_k = d_sᵀ @ q / sqrt(K)

Saved: q, k, v; the weights within softmax's own record; the weights after dropout, u.
Traps: the scale is sqrt(K), the width of a head, not sqrt(D); a large negative number for -inf leaks at extreme scores;
the mask comes after the scale, because a complex number times -inf has NaN for its imaginary part; a query that may see
no key has context 0 and gradient 0, although a softmax of -inf alone would be NaN in many libraries.
"""

import math
from collections.abc import Collection
from typing import Literal, NamedTuple

import numpy as np

from numpygpt.numerics import casting
from numpygpt.numerics.autocast import EXACT, Precision
from numpygpt.numerics.casting import product
from numpygpt.ops import dropout, softmax
from numpygpt.ops.visible import hidden
from numpygpt.shapes import Array, Bool, Inexact
from numpygpt.watch import Watch, unwatched


class Saved(NamedTuple):
    queries: Inexact[Array, "B H T K"]
    keys: Inexact[Array, "B H S K"]
    values: Inexact[Array, "B H S K"]
    softmax: softmax.Saved | casting.Saved
    dropout: dropout.Saved | casting.Saved
    dropped_weights: Inexact[Array, "B H T S"]
    wanted: Collection[str]
    precision: Precision = EXACT


def forward(
    queries: Inexact[Array, "B H T K"],
    keys: Inexact[Array, "B H S K"],
    values: Inexact[Array, "B H S K"],
    *,
    visible: Literal["causal", "all"] | Bool[Array, "B 1 T S"] = "causal",
    keep: Bool[Array, "B H T S"] | None = None,
    drop_rate: float = 0.0,
    wanted: Collection[str] = ("queries", "keys", "values"),
    precision: Precision = EXACT,
    watch: Watch = unwatched,
) -> tuple[Inexact[Array, "B H T K"], Saved]:
    """`visible` says which keys a query may see (`numpygpt.ops.visible`)."""
    T, S, K = queries.shape[2], keys.shape[2], queries.shape[3]
    low = precision.matmul
    attn_scores = product(queries * (1 / math.sqrt(K)), keys.mT, low)  # (1): fewer queries than scores to scale
    unseen = hidden(visible, slice(0, T), slice(0, S), past=S - T)
    if unseen is not None:
        np.copyto(attn_scores, -np.inf, where=unseen)  # (2)
    watch("attn_scores", attn_scores)
    attn_weights, softmaxed = casting.forward(softmax, precision.softmax, attn_scores)  # (3)
    watch("attn_weights", attn_weights)
    dropped_weights, dropped = casting.forward(  # (4)
        dropout, precision.dropout_weights, attn_weights, keep, drop_rate=drop_rate
    )
    watch("dropout", dropped_weights)
    context = product(dropped_weights, values, low)  # (5)
    return context, Saved(queries, keys, values, softmaxed, dropped, dropped_weights, wanted, precision)


class Gradients(NamedTuple):
    queries: Inexact[Array, "B H T K"] | None
    keys: Inexact[Array, "B H S K"] | None
    values: Inexact[Array, "B H S K"] | None


def backward(d_context: Inexact[Array, "B H T K"], saved: Saved, *, watch: Watch = unwatched) -> Gradients:
    wanted, low = saved.wanted, saved.precision.matmul
    d_values = product(saved.dropped_weights.mT, d_context, low) if "values" in wanted else None  # undoes (5)
    if "queries" not in wanted and "keys" not in wanted:
        return Gradients(None, None, d_values)
    d_dropped_weights = product(d_context, saved.values.mT, low)  # undoes (5), too
    watch("d_dropout", d_dropped_weights)
    d_attn_weights = casting.backward(dropout, d_dropped_weights, saved.dropout).x  # undoes (4)
    watch("d_attn_weights", d_attn_weights)
    d_attn_scores = casting.backward(softmax, d_attn_weights, saved.softmax).x  # undoes (3) and (2)
    watch("d_attn_scores", d_attn_scores)
    scale = 1 / math.sqrt(saved.queries.shape[-1])
    d_queries = product(d_attn_scores, saved.keys, low) * scale if "queries" in wanted else None  # undoes (1)
    d_keys = product(d_attn_scores.mT, saved.queries, low) * scale if "keys" in wanted else None
    return Gradients(d_queries, d_keys, d_values)
