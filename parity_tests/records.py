"""One record an operation or layer: what PyTorch computes in its place, and what to call both on.

The records drive every check of `test_op_parity`; a module of `numpygpt.ops` or `numpygpt.layers` without one fails it.
"""

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from numpygpt import layers, ops
from numpygpt.layers import transformer_block
from numpygpt.model.config import GPTConfig
from numpygpt.model.initialization import allocate
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.tree import mapped
from parity_tests.strategies import Source, drop_rates


class Call(NamedTuple):
    """What an operation is called with.

    arguments   forward's positional arguments by name: float64 arrays or trees of them, token ids, masks, None
    options     its keyword arguments
    """

    arguments: Mapping[str, Any]
    options: Mapping[str, Any] = {}


class Record(NamedTuple):
    """An operation or layer, and all that is needed to check it.

    operation   the module with forward and backward
    in_torch    takes forward's arguments as tensors; returns the output, and {path in Saved: tensor} of what the
                backward gets saved that is neither an argument nor the output
    draw        draws a call from a source of sizes and numbers
    special     calls that every run makes
    """

    operation: ModuleType
    in_torch: Callable[..., tuple[torch.Tensor, Mapping[str, torch.Tensor]]]
    draw: Callable[[Source], Call]
    special: Mapping[str, Call] = {}

    @property
    def name(self) -> str:
        return self.operation.__name__.rpartition(".")[2]

    def calls(self, *, ordinary: bool = False) -> st.SearchStrategy[Call]:
        return st.composite(lambda draw: self.draw(Source(draw, ordinary)))()


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


# Linear


def torch_linear(x, weight, bias=None):
    return F.linear(x, weight, bias), {}


def draw_linear(source):
    outputs, inputs = source.size(6), source.size(6)
    arguments = {"x": source.normal(*source.rows(), inputs), "weight": source.normal(outputs, inputs)}
    return Call(arguments | ({"bias": source.normal(outputs)} if source.draw(st.booleans()) else {}))


# Embedding


def torch_embedding(ids, weight):
    return F.embedding(ids, weight), {}


def draw_embedding(source):
    vocab_size = source.draw(st.integers(2, 9))
    return Call({"ids": source.ids(vocab_size, source.rows()), "weight": source.normal(vocab_size, source.size(5))})


# LayerNorm


def torch_layer_norm(x, scale, shift, *, eps=1e-5):
    inv_std = 1 / torch.sqrt(x.var(dim=-1, keepdim=True, unbiased=False) + eps)
    normalized = (x - x.mean(dim=-1, keepdim=True)) * inv_std
    return scale * normalized + shift, {"normalized": normalized, "inv_std": inv_std}


def draw_layer_norm(source):
    features = source.features()
    arguments = {"x": source.normal(*source.rows(), features)}
    arguments |= {"scale": source.normal(features), "shift": source.normal(features)}
    return Call(arguments, {"eps": source.draw(st.sampled_from([1e-5, 0.5, 100.0]))})


def layer_norm_of(x):
    return Call({"x": x, "scale": normal(x.shape[-1]) + 2, "shift": normal(x.shape[-1])})


# GELU


def torch_gelu(x):
    t = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), {"t": t}


def draw_gelu(source):
    return Call({"x": source.normal(*source.rows(), source.size(6))})


# Softmax


def torch_softmax(x):
    y = torch.softmax(x, dim=-1)
    return y, {}


def draw_softmax(source):
    return Call({"x": source.normal(*source.rows(), source.size(6))})


# Dropout


def torch_dropout(x, keep, *, drop_rate):
    return (x if keep is None else x * keep / (1 - drop_rate)), {}


def draw_dropout(source):
    rate = source.draw(drop_rates)
    x = source.normal(*source.rows(), source.size(6))
    return Call({"x": x, "keep": source.keep(x.shape, rate)}, {"drop_rate": rate})


# Attention


def torch_attention(queries, keys, values, *, keep=None, drop_rate=0.0):
    tokens, sources = queries.shape[-2], keys.shape[-2]
    later = torch.from_numpy(~np.tri(tokens, sources, sources - tokens, dtype=bool))
    attn_scores = queries @ keys.mT / math.sqrt(queries.shape[-1])
    attn_weights = torch.softmax(attn_scores.masked_fill(later, -math.inf), dim=-1)
    dropped_weights, _ = torch_dropout(attn_weights, keep, drop_rate=drop_rate)
    return dropped_weights @ values, {"softmax.y": attn_weights, "dropped_weights": dropped_weights}


def draw_attention(source):
    B, H, T, K = source.size(2), source.size(3), source.size(5), source.size(4)
    S, rate = T + source.size(3) - 1, source.draw(drop_rates)
    arguments = {name: source.normal(B, H, length, K) for name, length in (("queries", T), ("keys", S), ("values", S))}
    return Call(arguments, {"keep": source.keep((B, H, T, S), rate), "drop_rate": rate})


def torch_flash_attention(queries, keys, values, *, keep=None, drop_rate=0.0, tile):
    """The softmax divides after the product with the values.

    So the gradient's sum over a row is <d_context, context>, whose rounding does not cancel with the other term's.
    """
    later = torch.from_numpy(~np.tri(queries.shape[-2], keys.shape[-2], keys.shape[-2] - queries.shape[-2], dtype=bool))
    attn_scores = (queries @ keys.mT / math.sqrt(queries.shape[-1])).masked_fill(later, -math.inf)
    highest = attn_scores.detach().amax(dim=-1, keepdim=True)
    exponentials = (attn_scores - highest).exp()
    total = exponentials.sum(dim=-1, keepdim=True)
    dropped, _ = torch_dropout(exponentials, keep, drop_rate=drop_rate)
    return dropped @ values / total, {"highest": highest, "total": total.detach()}


def draw_flash_attention(source):
    arguments, options = draw_attention(source)
    return Call(arguments, {**options, "tile": source.size(4)})


def attention_of(size, T, K):
    queries, keys, values = np.random.default_rng(0).standard_normal((3, 2, 3, T, K))
    return Call({"queries": size * queries, "keys": keys, "values": values})


# Cross-entropy


def torch_cross_entropy(logits, targets, *, ignore_index=IGNORE_INDEX):
    """PyTorch's mean over no target is NaN; ours is the sum over no target, 0."""
    reduction = "mean" if (targets != ignore_index).any() else "sum"
    highest = logits.detach().amax(dim=-1, keepdim=True)
    log_sum = (logits.detach() - highest).exp().sum(dim=-1, keepdim=True).log()
    loss = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction=reduction)
    return loss, {"highest": highest, "log_sum": log_sum}


def draw_cross_entropy(source):
    rows, vocab_size = source.size(6), source.draw(st.integers(2, 9))
    ignore_index = source.draw(st.sampled_from([IGNORE_INDEX, 1]))
    arguments = {"logits": source.normal(rows, vocab_size)}
    arguments["targets"] = source.targets(vocab_size, rows, ignore_index)
    return Call(arguments, {"ignore_index": ignore_index})


# Layers


def torch_feed_forward(x, parameters):
    expand, _, contract = parameters.layers
    return torch_linear(torch_gelu(torch_linear(x, *expand)[0])[0], *contract)


def torch_multi_head_attention(x, parameters, *, n_heads, keep=None, drop_rate=0.0, flash=False):
    *projections, out_proj = parameters
    heads = [torch_linear(x, *projection)[0].unflatten(2, (n_heads, -1)).transpose(1, 2) for projection in projections]
    context, _ = torch_attention(*heads, keep=keep, drop_rate=drop_rate)
    return torch_linear(context.transpose(1, 2).flatten(2), *out_proj)


def torch_transformer_block(x, parameters, *, n_heads, masks, drop_rate, flash):
    attended, _ = torch_multi_head_attention(
        torch_layer_norm(x, *parameters.norm1)[0],
        parameters.att,
        n_heads=n_heads,
        keep=masks.attention,
        drop_rate=drop_rate,
    )
    x = x + torch_dropout(attended, masks.after_attention, drop_rate=drop_rate)[0]
    fed_forward, _ = torch_feed_forward(torch_layer_norm(x, *parameters.norm2)[0], parameters.ff)
    return x + torch_dropout(fed_forward, masks.after_feed_forward, drop_rate=drop_rate)[0], {}


def draw_block(source):
    """x (B, T, D), a block's parameters and the number of heads."""
    n_heads, head_dim = source.size(3), source.features(4)
    config = GPTConfig(1, 1, n_heads * head_dim, n_heads, 1, 0.0, source.draw(st.booleans()))
    (block,) = allocate(config, np.float64).trf_blocks
    x = source.normal(source.size(2), source.size(4), config.emb_dim)
    return x, mapped(lambda array: source.normal(*array.shape), block), n_heads


def draw_feed_forward(source):
    x, block, _ = draw_block(source)
    return Call({"x": x, "parameters": block.ff})


def draw_multi_head_attention(source):
    x, block, n_heads = draw_block(source)
    B, T, _ = x.shape
    rate = source.draw(drop_rates)
    keep = source.keep((B, n_heads, T, T), rate)
    options = {"n_heads": n_heads, "keep": keep, "drop_rate": rate, "flash": source.draw(st.booleans())}
    return Call({"x": x, "parameters": block.att}, options)


def draw_transformer_block(source):
    x, block, n_heads = draw_block(source)
    B, T, _ = x.shape
    rate = source.draw(drop_rates)
    shapes = (B, n_heads, T, T), x.shape, x.shape
    masks = transformer_block.DropoutMasks(*(source.keep(shape, rate) for shape in shapes))
    options = {"n_heads": n_heads, "masks": masks, "drop_rate": rate, "flash": source.draw(st.booleans())}
    return Call({"x": x, "parameters": block}, options)


HUGE_SCORES = np.array([[1e5, -1e5, 0.0, 99_999.0], [-1e5, -1e5, -1e5, -1e5], [1e5, 1e5, -1e5, 1e5]])

RECORDS = [
    Record(ops.linear, torch_linear, draw_linear),
    Record(
        ops.embedding,
        torch_embedding,
        draw_embedding,
        {"one id only": Call({"ids": np.zeros((3, 5), int), "weight": normal(2, 4)})},
    ),
    Record(
        ops.layer_norm,
        torch_layer_norm,
        draw_layer_norm,
        {
            "mean 2000": layer_norm_of(2000 + normal(5, 16)),
            "equal features": layer_norm_of(np.full((3, 5), 0.7)),
            "one feature": layer_norm_of(normal(3, 1)),
        },
    ),
    Record(
        ops.gelu,
        torch_gelu,
        draw_gelu,
        {"both tails": Call({"x": np.array([[0.0, -0.0, -5.0, 5.0, -20.0, 20.0, -1e5, 1e5]])})},
    ),
    Record(
        ops.softmax,
        torch_softmax,
        draw_softmax,
        {
            "scores of 1e5": Call({"x": HUGE_SCORES}),
            "masked scores": Call({"x": np.array([[1.0, -np.inf, -np.inf], [0.0, 2.0, -np.inf]])}),
        },
    ),
    Record(
        ops.dropout,
        torch_dropout,
        draw_dropout,
        {"nothing kept": Call({"x": normal(2, 3), "keep": np.zeros((2, 3), bool)}, {"drop_rate": 0.5})},
    ),
    Record(
        ops.attention,
        torch_attention,
        draw_attention,
        {
            "scores of 1e5": attention_of(1e5, T=5, K=4),
            "one token": attention_of(1, T=1, K=4),
            "one feature a head": attention_of(1, T=5, K=1),
        },
    ),
    Record(
        ops.flash_attention,
        torch_flash_attention,
        draw_flash_attention,
        {
            "scores of 1e5, tiles of 2": attention_of(1e5, T=5, K=4)._replace(options={"tile": 2}),
            "one tile": attention_of(1, T=5, K=4)._replace(options={"tile": 5}),
            "one token a tile": attention_of(1, T=5, K=1)._replace(options={"tile": 1}),
        },
    ),
    Record(
        ops.cross_entropy,
        torch_cross_entropy,
        draw_cross_entropy,
        {
            "logits of 1e5": Call({"logits": HUGE_SCORES, "targets": np.array([0, 2, 1])}),
            "all targets ignored": Call({"logits": normal(4, 3), "targets": np.full(4, IGNORE_INDEX)}),
        },
    ),
    Record(layers.feed_forward, torch_feed_forward, draw_feed_forward),
    Record(layers.multi_head_attention, torch_multi_head_attention, draw_multi_head_attention),
    Record(layers.transformer_block, torch_transformer_block, draw_transformer_block),
    Record(layers.recomputed_block, torch_transformer_block, draw_transformer_block),
]
