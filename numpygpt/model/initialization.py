"""The parameters of a model: their arrays, and PyTorch's initial values in them."""

import math
from typing import Any

import numpy as np

from numpygpt.layers import parameters as p
from numpygpt.model.config import GPTConfig
from numpygpt.ops import sinusoidal_positions
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array
from numpygpt.tree import children


def allocate(config: GPTConfig, dtype: Any) -> p.GPT:
    """A tree of arrays for this configuration, not yet filled."""
    D, V = config.emb_dim, config.vocab_size

    def empty(*shape: int) -> Array:
        return np.empty(shape, dtype)

    def layer_norm() -> p.LayerNorm:
        return p.LayerNorm(empty(D), empty(D) if config.bias else None)

    def linear(inputs: int, outputs: int, *, bias: bool = config.bias) -> p.Linear:
        return p.Linear(empty(outputs, inputs), empty(outputs) if bias else None)

    def block() -> p.TransformerBlock:
        return p.TransformerBlock(
            att=p.StackedAttention(linear(D, 3 * D, bias=config.qkv_bias), out_proj=linear(D, D)),
            ff=p.FeedForward((linear(D, 4 * D), (), linear(4 * D, D))),
            norm1=layer_norm(),
            norm2=layer_norm(),
        )

    def positions() -> p.Embedding | p.Sinusoids:
        if config.position == "sinusoidal":
            return p.Sinusoids(sinusoidal_positions.table(config.context_length, D, dtype))
        return p.Embedding(empty(config.context_length, D))

    def head() -> p.Linear:
        if config.classes is not None:
            return linear(D, config.classes, bias=True)
        return p.Linear(tok_emb if config.tie_weights else empty(V, D))

    tok_emb = empty(V, D)
    return p.GPT(
        tok_emb=p.Embedding(tok_emb),
        pos_emb=positions(),
        trf_blocks=tuple(block() for _ in range(config.n_layers)),
        final_norm=layer_norm(),
        out_head=head(),
    )


def initialize(node: Any, generator: TorchGenerator) -> None:
    """Fill the tree as PyTorch's constructors would with this generator, in their order.

    Embedding: N(0, 1). Linear: weight and bias uniform in ±1/sqrt(inputs) (torch.nn.Linear.reset_parameters).
    LayerNorm: ones and zeros. The values are drawn in float32, so that a float64 model holds the same weights as the
    float32 one.
    """
    match node:
        case p.Embedding(weight):
            generator.normal(weight.shape, out=weight)
        case p.Linear(weight, bias):
            _fill_uniform(weight, weight.shape[1], generator)
            if bias is not None:
                _fill_uniform(bias, weight.shape[1], generator)
        case p.LayerNorm(scale, shift):
            scale[...] = 1
            if shift is not None:
                shift[...] = 0
        case _:
            for child in children(node).values():
                initialize(child, generator)


def _fill_uniform(array: Array, inputs: int, generator: TorchGenerator) -> None:
    bound = 1 / math.sqrt(inputs)
    generator.uniform(array.shape, -bound, bound, out=array)
