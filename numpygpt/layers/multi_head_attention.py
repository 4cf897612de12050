"""Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2).

    x                       (B, T, D)      input
    queries, keys, values   (B, H, T, K)   split into heads, D = H K
    context                 (B, H, T, K)   what each head read
    context_vec             (B, T, D)      the heads merged
    y                       (B, T, D)      output

    (1)  queries, keys, values = x @ Wqᵀ, x @ Wkᵀ, x @ Wvᵀ (+ biases)
                                                   one product if the three weights lie in one array
    (2)  split: feature h K + i of queries is feature i of head h's; the same for keys and values
    (3)  context = attention(queries, keys, values)    or flash_attention, the same in less memory
    (4)  merge: the inverse of the split
    (5)  y = context_vec @ Woᵀ + bo

Splitting and merging only reorder; the gradient of each is the other. Decoding with a cache: `past` holds the keys and
values of earlier positions, and `saved.present` those of all positions so far.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from numpygpt.layers import parameters as p
from numpygpt.layers import projection
from numpygpt.layers.key_value_cache import KeyValueCache
from numpygpt.numerics import casting
from numpygpt.numerics.autocast import EXACT, Precision
from numpygpt.ops import attention, flash_attention
from numpygpt.shapes import Array, Bool, Inexact
from numpygpt.tree import Trained, any_trained, everything, nowhere, within
from numpygpt.watch import Watch, unwatched

#: What attention calls its operands, and the parameters that make them of x.
OPERANDS = {"queries": "W_query", "keys": "W_key", "values": "W_value"}


class Saved(NamedTuple):
    """No attention is saved if none of its operands gets a gradient."""

    projections: tuple[Any, ...]
    attention: attention.Saved | flash_attention.Saved | casting.Saved | None
    out_proj: Any
    parameters: p.MultiHeadAttention | p.StackedAttention
    present: KeyValueCache | None


def forward(
    x: Inexact[Array, "B T D"],
    parameters: p.MultiHeadAttention | p.StackedAttention,
    *,
    n_heads: int,
    visible: Literal["causal", "all"] | Bool[Array, "B 1 T S"] = "causal",
    keep: Bool[Array, "B {n_heads} T S"] | None = None,
    drop_rate: float = 0.0,
    past: KeyValueCache | None = None,
    flash: bool = False,
    precision: Precision = EXACT,
    wants_x: bool = True,
    trained: Trained = everything,
    watch: Watch = unwatched,
) -> tuple[Inexact[Array, "B T D"], Saved]:
    """With `flash`, a watch is not told the tensors (B, H, T, S), which then never exist."""
    projected, projections = _project(x, parameters, precision, wants_x, trained)  # (1)
    queries, keys, values = (split_heads(part, n_heads) for part in projected)  # (2)
    watch("queries", queries)
    watch("keys", keys)
    watch("values", values)
    present = None if past is None else past.extended(keys, values)
    if present is not None:
        keys, values = present.keys, present.values
    wanted = {
        operand
        for operand, name in OPERANDS.items()
        if wants_x or any_trained(getattr(parameters, name), within(trained, name))
    }
    options: dict[str, Any] = {"visible": visible, "keep": keep, "drop_rate": drop_rate, "wanted": wanted}
    if flash:
        context, attended = casting.forward(  # (3)
            flash_attention, precision.scaled_dot_product_attention, queries, keys, values, **options
        )
    else:
        context, attended = attention.forward(queries, keys, values, **options, precision=precision, watch=watch)
    context_vec = merge_heads(context)  # (4)
    watch("context_vec", context_vec)
    y, put_out = projection.forward(  # (5)
        context_vec,
        parameters.out_proj,
        precision=precision,
        wants_x=bool(wanted),
        trained=within(trained, "out_proj"),
    )
    watch("out_proj", y)
    return y, Saved(projections, attended if wanted else None, put_out, parameters, present)


class Gradients(NamedTuple):
    x: Inexact[Array, "B T D"] | None
    parameters: p.MultiHeadAttention | p.StackedAttention


def backward(d_y: Inexact[Array, "B T D"], saved: Saved, *, watch: Watch = unwatched) -> Gradients:
    """Of a forward without `past`."""
    watch("d_out_proj", d_y)
    d_context_vec, d_out_proj = projection.backward(d_y, saved.out_proj)  # undoes (5)
    if d_context_vec is None or saved.attention is None:
        return Gradients(None, nowhere(saved.parameters)._replace(out_proj=d_out_proj))
    watch("d_context_vec", d_context_vec)
    own = casting.own(saved.attention)
    d_context = split_heads(d_context_vec, own.queries.shape[1])  # undoes (4)
    if isinstance(own, flash_attention.Saved):
        d_heads = casting.backward(flash_attention, d_context, saved.attention)  # undoes (3)
    else:
        d_heads = attention.backward(d_context, own, watch=watch)
    for name, d_head in reversed(d_heads._asdict().items()):
        if d_head is not None:
            watch(f"d_{name}", d_head)
    if len(saved.projections) == 1:
        return _through_one_product(d_heads, d_out_proj, saved)  # undoes (2) and (1)
    return _through_three_products(d_heads, d_out_proj, saved)


def _project(
    x: Array,
    parameters: p.MultiHeadAttention | p.StackedAttention,
    precision: Precision,
    wants_x: bool,
    trained: Trained,
) -> tuple[Sequence[Array], tuple[Any, ...]]:
    """Queries, keys and values (B, T, D), and what one product or three of them save.

    In a lower format there are three: each rounds its own gradient of x, and one would round the sum of them.
    """
    if isinstance(parameters, p.StackedAttention) and _trained_alike(trained) and precision.linear is None:
        qkv, saved = projection.forward(x, parameters.qkv, wants_x=wants_x, trained=within(trained, "W_query"))
        return _thirds(qkv), (saved,)
    parts, saved_parts = zip(
        *(
            projection.forward(
                x, getattr(parameters, name), precision=precision, wants_x=wants_x, trained=within(trained, name)
            )
            for name in OPERANDS.values()
        ),
        strict=True,
    )
    return parts, saved_parts


def _thirds(qkv: Array) -> list[Array]:
    """Views of queries, keys and values side by side."""
    D = qkv.shape[-1] // 3
    return [qkv[..., start : start + D] for start in (0, D, 2 * D)]


def _trained_alike(trained: Trained) -> bool:
    """Whether the three weights are trained all or none, and so the biases."""
    return all(
        len({trained(f"{name}.{leaf}") for name in OPERANDS.values()}) == 1 for leaf in p.Linear._fields
    )


def _through_one_product(d_heads: Sequence[Any], d_out_proj: Any, saved: Saved) -> Gradients:
    B, H, T, K = d_heads[0].shape
    d_qkv = np.empty((B, T, 3 * H * K), d_heads[0].dtype)
    for d_part, d_head in zip(_thirds(d_qkv), d_heads, strict=True):
        split_heads(d_part, H)[...] = d_head
    d_x, d_stacked = projection.backward(d_qkv, saved.projections[0])
    assert isinstance(d_stacked, p.Linear)
    return Gradients(d_x, p.StackedAttention(d_stacked, d_out_proj))


def _through_three_products(d_heads: Sequence[Array | None], d_out_proj: Any, saved: Saved) -> Gradients:
    d_x = None
    d_nodes = nowhere(saved.parameters)._replace(out_proj=d_out_proj)
    for name, d_head, saved_part in zip(OPERANDS.values(), d_heads, saved.projections, strict=True):
        if d_head is None:
            continue
        d_part, d_node = projection.backward(merge_heads(d_head), saved_part)
        d_nodes = d_nodes._replace(**{name: d_node})
        d_x = d_part if d_x is None else d_x + d_part  # x has three uses
    return Gradients(d_x, d_nodes)


def split_heads(x: Inexact[Array, "B T D"], n_heads: int) -> Inexact[Array, "B {n_heads} T K"]:
    """A view: the features of head h are features h K to (h + 1) K of x."""
    return x.reshape(*x.shape[:2], n_heads, -1).swapaxes(1, 2)


def merge_heads(x: Inexact[Array, "B H T K"]) -> Inexact[Array, "B T D"]:
    """The inverse of split_heads: heads back beside each other; a copy, unless x is a view that split_heads made."""
    return x.swapaxes(1, 2).reshape(len(x), x.shape[2], -1)
