"""Causal multi-head attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2).

    x                       (B, T, D)      input
    qkv                     (B, T, 3 D)    queries, keys and values side by side
    queries, keys, values   (B, H, T, K)   split into heads, D = H K
    context                 (B, H, T, K)   what each head read
    context_vec             (B, T, D)      the heads merged
    y                       (B, T, D)      output

    (1)  qkv = x [Wq; Wk; Wv]ᵀ (+ bias)            one product where three share the operand x
    (2)  split: feature h K + i of queries is feature i of head h's; the same for keys and values
    (3)  context = attention(queries, keys, values)    or flash_attention, the same numbers in less memory
    (4)  merge: the inverse of the split
    (5)  y = context_vec Woᵀ + bo

Splitting and merging move no number; their gradients are each other. Decoding with a cache: `past` holds the keys and
values of earlier positions, and `saved.present` those of all positions so far.
"""

from typing import NamedTuple

import numpy as np

from numpygpt.layers import parameters as p
from numpygpt.layers.key_value_cache import KeyValueCache
from numpygpt.ops import attention, flash_attention, linear
from numpygpt.shapes import Array, Bool, Inexact
from numpygpt.watch import Watch, unwatched


class Saved(NamedTuple):
    qkv: linear.Saved
    attention: attention.Saved | flash_attention.Saved
    out_proj: linear.Saved
    present: KeyValueCache | None


def forward(
    x: Inexact[Array, "B T D"],
    parameters: p.MultiHeadAttention,
    *,
    n_heads: int,
    keep: Bool[Array, "B {n_heads} T S"] | None = None,
    drop_rate: float = 0.0,
    past: KeyValueCache | None = None,
    flash: bool = False,
    watch: Watch = unwatched,
) -> tuple[Inexact[Array, "B T D"], Saved]:
    """With `flash`, a watch is not told the tensors of T x S numbers, which then never exist."""
    *projections, out_proj = parameters
    weight, bias = stacked_projections(projections)
    qkv, projected = linear.forward(x, weight, bias)  # (1)
    queries, keys, values = (split_heads(part, n_heads) for part in np.split(qkv, 3, axis=-1))  # (2)
    watch("queries", queries)
    watch("keys", keys)
    watch("values", values)
    present = None if past is None else past.extended(keys, values)
    if present is not None:
        keys, values = present.keys, present.values
    attended: attention.Saved | flash_attention.Saved
    if flash:
        context, attended = flash_attention.forward(queries, keys, values, keep=keep, drop_rate=drop_rate)  # (3)
    else:
        context, attended = attention.forward(queries, keys, values, keep=keep, drop_rate=drop_rate, watch=watch)
    context_vec = merge_heads(context)  # (4)
    watch("context_vec", context_vec)
    y, put_out = linear.forward(context_vec, *out_proj)  # (5)
    watch("out_proj", y)
    return y, Saved(projected, attended, put_out, present)


class Gradients(NamedTuple):
    x: Inexact[Array, "B T D"]
    parameters: p.MultiHeadAttention


def backward(d_y: Inexact[Array, "B T D"], saved: Saved, *, watch: Watch = unwatched) -> Gradients:
    """Of a forward without `past`."""
    n_heads = saved.attention.queries.shape[1]
    watch("d_out_proj", d_y)
    d_context_vec, d_out_weight, d_out_bias = linear.backward(d_y, saved.out_proj)  # undoes (5)
    watch("d_context_vec", d_context_vec)
    d_context = split_heads(d_context_vec, n_heads)  # undoes (4)
    d_heads: attention.Gradients | flash_attention.Gradients
    if isinstance(saved.attention, flash_attention.Saved):
        d_heads = flash_attention.backward(d_context, saved.attention)  # undoes (3)
    else:
        d_heads = attention.backward(d_context, saved.attention, watch=watch)
    watch("d_values", d_heads.values)
    watch("d_keys", d_heads.keys)
    watch("d_queries", d_heads.queries)
    d_qkv = np.empty((*d_y.shape[:2], 3 * d_context_vec.shape[2]), d_y.dtype)
    for d_part, d_head in zip(np.split(d_qkv, 3, axis=-1), d_heads, strict=True):
        split_heads(d_part, n_heads)[...] = d_head  # undoes (2)
    d_x, d_weight, d_bias = linear.backward(d_qkv, saved.qkv)  # undoes (1)
    d_weights = np.split(d_weight, 3)
    d_biases = [None] * 3 if d_bias is None else np.split(d_bias, 3)
    d_query, d_key, d_value = (p.Linear(*pair) for pair in zip(d_weights, d_biases, strict=True))
    return Gradients(d_x, p.MultiHeadAttention(d_query, d_key, d_value, p.Linear(d_out_weight, d_out_bias)))


def stacked_projections(projections: list[p.Linear]) -> tuple[Array, Array | None]:
    """The weights and biases of queries, keys and values as one weight (3 D, D) and one bias (3 D)."""
    weights, biases = zip(*projections, strict=True)
    return p.stacked(*weights), None if biases[0] is None else p.stacked(*biases)


def split_heads(x: Inexact[Array, "B T D"], n_heads: int) -> Inexact[Array, "B {n_heads} T K"]:
    """A view: the features of head h are features h K to (h + 1) K of x."""
    return x.reshape(*x.shape[:2], n_heads, -1).swapaxes(1, 2)


def merge_heads(x: Inexact[Array, "B H T K"]) -> Inexact[Array, "B T D"]:
    """The inverse of split_heads: heads back beside each other; a copy, unless x is a view that split_heads made."""
    return x.swapaxes(1, 2).reshape(len(x), x.shape[2], -1)
