"""Parameters of a model: their arrays, and PyTorch's initial values in them."""

import math
from typing import Any

import numpy as np

from numpygpt.layers.parameters import (
    GPT,
    Embedding,
    FeedForward,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    TransformerBlock,
)
from numpygpt.model.config import GPTConfig
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array


def allocate(config: GPTConfig, dtype: Any) -> GPT:
    """A tree of arrays for this configuration, not yet filled."""
    D, V = config.emb_dim, config.vocab_size

    def empty(*shape: int) -> Array:
        return np.empty(shape, dtype)

    def layer_norm() -> LayerNorm:
        return LayerNorm(empty(D), empty(D))

    def linear(inputs: int, outputs: int) -> Linear:
        return Linear(empty(outputs, inputs), empty(outputs))

    def block() -> TransformerBlock:
        weights = np.split(empty(3 * D, D), 3)
        biases = np.split(empty(3 * D), 3) if config.qkv_bias else [None] * 3
        queries, keys, values = (Linear(*pair) for pair in zip(weights, biases, strict=True))
        return TransformerBlock(
            att=MultiHeadAttention(queries, keys, values, out_proj=linear(D, D)),
            ff=FeedForward((linear(D, 4 * D), (), linear(4 * D, D))),
            norm1=layer_norm(),
            norm2=layer_norm(),
        )

    tok_emb = empty(V, D)
    return GPT(
        tok_emb=Embedding(tok_emb),
        pos_emb=Embedding(empty(config.context_length, D)) if config.position == "learned" else (),
        trf_blocks=tuple(block() for _ in range(config.n_layers)),
        final_norm=layer_norm(),
        out_head=Linear(tok_emb if config.tie_weights else empty(V, D)),
    )


def initialize(tree: Any, generator: TorchGenerator) -> None:
    """Fill the tree as PyTorch's constructors would with this generator, in their order.

    Embedding: N(0, 1). Linear: weight and bias uniform in ±1/sqrt(inputs) (torch.nn.Linear.reset_parameters).
    LayerNorm: ones and zeros. The numbers are drawn in float32, so that a float64 model holds the same weights as the
    float32 one.
    """
    match tree:
        case Embedding(weight):
            generator.normal(weight.shape, out=weight)
        case Linear(weight, bias):
            _fill_uniform(weight, weight.shape[1], generator)
            if bias is not None:
                _fill_uniform(bias, weight.shape[1], generator)
        case LayerNorm(scale, shift):
            scale[...], shift[...] = 1, 0
        case _:
            for child in tree:
                initialize(child, generator)


def _fill_uniform(array: Array, inputs: int, generator: TorchGenerator) -> None:
    bound = 1 / math.sqrt(inputs)
    generator.uniform(array.shape, -bound, bound, out=array)
