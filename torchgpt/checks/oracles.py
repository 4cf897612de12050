"""The oracle of each operation: a function that computes the same in PyTorch, so that autograd gives its gradients.

An oracle takes the arguments and options of the operation's forward, with tensors in the place of arrays, except the
options `WITHOUT_EFFECT`. It returns the output, and {path in Saved: tensor} of what the forward saves for the backward,
except arguments and the output. `ORACLES` has the oracles by the names of the operations.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from numpygpt.layers import parameters as p
from numpygpt.numerics.absmax import Absmax
from numpygpt.numerics.zero_point import ZeroPoint
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.tree import mapped
from torchgpt.checks.objective_oracles import OBJECTIVE_ORACLES

#: Options that say what is computed, and in which order, but change no value.
WITHOUT_EFFECT = {"tile", "wanted", "trained", "wants_x", "recompute"}

Outcome = tuple[Tensor, Mapping[str, Tensor]]


# Operations


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Outcome:
    """This is PyTorch's own function."""
    return F.linear(x, weight, bias), {}


def lora(x: Tensor, A: Tensor, B: Tensor, *, scale: float) -> Outcome:
    """Two linear layers without a bias, as peft's `lora.Linear.forward` has them."""
    low = F.linear(x, A)
    return F.linear(low, B) * scale, {"low": low.detach().flatten(0, -2)}


def embedding(ids: Tensor, weight: Tensor) -> Outcome:
    """This is PyTorch's own function."""
    return F.embedding(ids, weight), {}


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor | None = None, *, eps: float = 1e-5) -> Outcome:
    """The formula is written out, because what is saved is needed too."""
    inv_std = 1 / torch.sqrt(x.var(dim=-1, keepdim=True, unbiased=False) + eps)
    normalized = (x - x.mean(dim=-1, keepdim=True)) * inv_std
    y = scale * normalized if shift is None else scale * normalized + shift
    return y, {"normalized": normalized, "inv_std": inv_std}


def gelu(x: Tensor) -> Outcome:
    """The formula is written out, because what is saved is needed too."""
    s = 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x * s, {"s": s}


def gelu_erf(x: Tensor) -> Outcome:
    """The formula is written out, because what is saved is needed too."""
    s = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x * s, {"s": s}


def softmax(x: Tensor) -> Outcome:
    """This is PyTorch's own function, except that a row of only -inf gives 0, for which PyTorch gives NaN."""
    nothing = x.isneginf().all(dim=-1, keepdim=True)
    return torch.softmax(x.masked_fill(nothing, 0), dim=-1).masked_fill(nothing, 0), {}


def dropout(x: Tensor, keep: Tensor | None, *, drop_rate: float) -> Outcome:
    """The mask is given; PyTorch's own function would draw one."""
    return (x if keep is None else x * keep / (1 - drop_rate)), {}


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    visible: str | Tensor = "causal",
    keep: Tensor | None = None,
    drop_rate: float = 0.0,
) -> Outcome:
    """The formula is written out, because what is saved is needed too."""
    attn_weights, _ = softmax(_masked_scores(queries, keys, visible))
    dropped_weights, _ = dropout(attn_weights, keep, drop_rate=drop_rate)
    return dropped_weights @ values, {"softmax.y": attn_weights, "dropped_weights": dropped_weights}


def flash_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    visible: str | Tensor = "causal",
    keep: Tensor | None = None,
    drop_rate: float = 0.0,
) -> Outcome:
    """This is `attention`, except that the softmax divides after the product with the values.

    So the gradient subtracts <d_context, context>, and its rounding errors do not cancel with those of the other term.
    """
    attn_scores = _masked_scores(queries, keys, visible)
    highest = attn_scores.detach().amax(dim=-1, keepdim=True)
    exponentials = (attn_scores - highest.masked_fill(highest.isneginf(), 0)).exp()
    total = exponentials.sum(dim=-1, keepdim=True)
    total = total.masked_fill(total == 0, 1)  # a query that sees no key has the sum 0
    dropped, _ = dropout(exponentials, keep, drop_rate=drop_rate)
    return dropped @ values / total, {"highest": highest, "total": total.detach()}


def _masked_scores(queries: Tensor, keys: Tensor, visible: str | Tensor) -> Tensor:
    attn_scores = queries @ keys.mT / math.sqrt(queries.shape[-1])
    if isinstance(visible, Tensor):
        return attn_scores.masked_fill(~visible, -math.inf)
    if visible == "all":
        return attn_scores
    tokens, sources = attn_scores.shape[-2:]
    return attn_scores.masked_fill(~torch.ones(tokens, sources, dtype=torch.bool).tril(sources - tokens), -math.inf)


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Outcome:
    """If no target counts, PyTorch's mean is NaN; ours is the sum, 0."""
    reduction = "mean" if (targets != ignore_index).any() else "sum"
    highest = logits.detach().amax(dim=-1, keepdim=True)
    log_sum = (logits.detach() - highest).exp().sum(dim=-1, keepdim=True).log()
    loss = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction=reduction)
    return loss, {"highest": highest, "log_sum": log_sum}


def quantized_linear(x: Tensor, weight: Any, bias: Tensor | None = None) -> Outcome:
    """The whole weight is dequantized, code by code, and multiplied."""
    return F.linear(x, dequantized(weight), bias), {}


def dequantized(weight: Any) -> Tensor:
    """What the codes of a quantized array stand for, times the constants of their blocks."""
    size = math.prod(weight.shape)
    blocks = torch.arange(size) // weight.block_size
    codes = weight.codes.long()
    if weight.bits == 4:
        codes = torch.stack([codes // 16, codes % 16], dim=-1).flatten()[:size]
    if isinstance(weight, Absmax):
        step = weight.absmax / (2 ** (weight.bits - 1) - 1)
        values = (codes if weight.bits == 8 else codes - 8) * _looked_up(step, blocks)
    elif isinstance(weight, ZeroPoint):
        values = (codes - torch.as_tensor(weight.zeros)[blocks]) * _looked_up(weight.steps, blocks)
    else:
        absmax = weight.absmax
        if not isinstance(absmax, Tensor):
            absmax = dequantized(absmax.rest) + absmax.mean
        values = _looked_up(weight.levels, codes) * _looked_up(absmax, blocks)
    return values.reshape(weight.shape)


def _like(x: Tensor, tensor: Tensor) -> Tensor:
    return tensor.to(x.dtype) if tensor.is_floating_point() else tensor


def _looked_up(table: Any, ids: Tensor) -> Tensor:
    return F.embedding(ids, table.unsqueeze(-1)).squeeze(-1)


# Layers


def projection(x: Tensor, parameters: Any) -> Outcome:
    """The oracle takes a node with weight and bias, or one with paths of low rank, each as the library peft has it."""
    if isinstance(parameters, p.QuantizedLinear):
        weight = mapped(lambda array: _like(x, torch.from_numpy(array)), parameters.weight)
        bias: Any = parameters.bias  # the node holds tensors
        return quantized_linear(x, weight, bias)
    if not isinstance(parameters, p.LoRA):
        return linear(x, *parameters)
    y, _ = projection(x, parameters.base)
    for name, scale in parameters.scales.items():
        if not parameters.merged:
            keep = parameters.keep.get(name)
            kept = None if keep is None else torch.as_tensor(keep)
            dropped, _ = dropout(x, kept, drop_rate=parameters.drop_rates[name])
            matrices: Any = parameters.lora_A[name].weight, parameters.lora_B[name].weight
            side, _ = lora(dropped, *matrices, scale=scale)
            y = y + side
    return y, {}


def feed_forward(x: Tensor, parameters: Any, *, activation: str = "gelu_tanh") -> Outcome:
    """Two projections, with GELU between them."""
    expand, _, contract = parameters.layers
    form = {"gelu_tanh": gelu, "gelu_erf": gelu_erf}[activation]
    return projection(form(projection(x, expand)[0])[0], contract)


def multi_head_attention(x: Tensor, parameters: Any, *, n_heads: int, flash: bool = False, **options: Any) -> Outcome:
    """Projections to heads, `attention` or `flash_attention`, and a last projection. `options` are `attention`'s."""
    *operands, out_proj = parameters
    heads = [projection(x, operand)[0].unflatten(2, (n_heads, -1)).transpose(1, 2) for operand in operands]
    context, _ = (flash_attention if flash else attention)(*heads, **options)
    return projection(context.transpose(1, 2).flatten(2), out_proj)


def transformer_block(
    x: Tensor,
    parameters: Any,
    *,
    n_heads: int,
    masks: Any = (None, None, None),
    drop_rate: float = 0.0,
    activation: str = "gelu_tanh",
    norm_eps: float = 1e-5,
    **options: Any,
) -> Outcome:
    """Attention and feed-forward, with a residual around each. The other options are `multi_head_attention`'s."""
    keep, after_attention, after_feed_forward = masks
    attended, _ = multi_head_attention(
        layer_norm(x, *parameters.norm1, eps=norm_eps)[0],
        parameters.att,
        n_heads=n_heads,
        keep=keep,
        drop_rate=drop_rate,
        **options,
    )
    x = x + dropout(attended, after_attention, drop_rate=drop_rate)[0]
    normalized, _ = layer_norm(x, *parameters.norm2, eps=norm_eps)
    fed_forward, _ = feed_forward(normalized, parameters.ff, activation=activation)
    return x + dropout(fed_forward, after_feed_forward, drop_rate=drop_rate)[0], {}


def body(
    inputs: Tensor,
    parameters: Any,
    *,
    positions: Tensor | None = None,
    masks: Any = None,
    drop_rate: float = 0.0,
    norm_eps: float = 1e-5,
    **options: Any,
) -> Outcome:
    """Embeddings, blocks and the last norm. The other options are `transformer_block`'s."""
    tokens = inputs if inputs.is_floating_point() else F.embedding(inputs, parameters.tok_emb.weight)
    (table,) = parameters.pos_emb
    if positions is None:
        positions = torch.arange(inputs.shape[1])
    x = tokens + F.embedding(positions, torch.as_tensor(table).to(tokens.dtype))
    keep, block_masks = (None, [(None, None, None)] * len(parameters.trf_blocks)) if masks is None else masks[:2]
    x, _ = dropout(x, keep, drop_rate=drop_rate)
    for block, kept in zip(parameters.trf_blocks, block_masks, strict=True):
        x, _ = transformer_block(x, block, masks=kept, drop_rate=drop_rate, norm_eps=norm_eps, **options)
    return layer_norm(x, *parameters.final_norm, eps=norm_eps)[0], {}


# Objectives


def next_token(logits: Tensor, targets: Tensor) -> Outcome:
    """The cross-entropy with all positions taken as rows."""
    loss, _ = cross_entropy(logits.flatten(0, 1), targets.flatten())
    return loss, {}


#: The oracles by the names of their operations.
ORACLES: Mapping[str, Callable[..., Outcome]] = {
    oracle.__name__: oracle
    for oracle in (
        linear, quantized_linear, lora, embedding, layer_norm, gelu, gelu_erf, softmax, dropout, attention,
        flash_attention, cross_entropy, projection, feed_forward, multi_head_attention, transformer_block, body,
        next_token,
    )
} | {"recomputed_block": transformer_block} | OBJECTIVE_ORACLES  # fmt: skip
