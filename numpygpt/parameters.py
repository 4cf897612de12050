"""The parameters of a GPT: a tree with the shape of the model, whose paths are PyTorch's parameter names.

A node is a NamedTuple with a field a child, or a tuple where PyTorch numbers its children (`trf_blocks.0`,
`ff.layers.2`), so `named(tree)` yields the names, the shapes and the order of PyTorch's state dict. Gradients come back
in the same tree.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from numpygpt.config import GPTConfig
from numpygpt.random import TorchGenerator
from numpygpt.shapes import Array, Inexact


class Embedding(NamedTuple):
    """A table with a row for each id: V tokens, or C positions."""

    weight: Inexact[Array, "V D"]


class Linear(NamedTuple):
    """A matrix from D features to F, out x in as PyTorch keeps it, and a bias where there is one."""

    weight: Inexact[Array, "F D"]
    bias: Inexact[Array, "F"] | None = None


class LayerNorm(NamedTuple):
    """What each normalized feature is multiplied by, and what is then added."""

    scale: Inexact[Array, "D"]
    shift: Inexact[Array, "D"]


class FeedForward(NamedTuple):
    """Linear from D to 4 D, GELU, Linear from 4 D to D."""

    layers: tuple[Linear, tuple[()], Linear]  # GELU has no parameters


class MultiHeadAttention(NamedTuple):
    """Four linears from D to D; the rows of the first three are the heads', K rows each, one head after the other."""

    W_query: Linear
    W_key: Linear
    W_value: Linear
    out_proj: Linear


class TransformerBlock(NamedTuple):
    """In PyTorch's order, which is not that of the computation: norm1 comes before att and norm2 before ff."""

    att: MultiHeadAttention
    ff: FeedForward
    norm1: LayerNorm
    norm2: LayerNorm


class GPT(NamedTuple):
    """The whole model; with tied weights out_head.weight is tok_emb.weight, the same array."""

    tok_emb: Embedding
    pos_emb: Embedding | tuple[()]  # sinusoidal positions have no parameters
    trf_blocks: tuple[TransformerBlock, ...]
    final_norm: LayerNorm
    out_head: Linear


def named(tree: Any, path: str = "") -> Iterator[tuple[str, Array]]:
    """The arrays of a tree with their names, in order; absent ones (None) are left out."""
    if isinstance(tree, np.ndarray):
        yield path, tree
    elif tree is not None:
        for name, child in zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True):
            yield from named(child, f"{path}.{name}" if path else str(name))


def mapped(function: Callable[[Array], Any], tree: Any) -> Any:
    """The tree with `function` applied to each of its arrays."""
    if isinstance(tree, np.ndarray):
        return function(tree)
    if tree is None:
        return None
    children = [mapped(function, child) for child in tree]
    return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)


def stacked(*arrays: Array) -> Array:
    """The arrays one below the other: a view where they already lie so in memory, otherwise a copy.

    One product with queries', keys' and values' weights together is worth having only if stacking them costs nothing,
    so `allocate` lays the three in one array.
    """
    base = arrays[0].base
    rows = np.cumsum([0, *(len(array) for array in arrays)])
    if (
        base is not None
        and base.shape == (rows[-1], *arrays[0].shape[1:])
        and all(
            array.base is base
            and array.strides == base.strides
            and array.ctypes.data == base.ctypes.data + row * base.strides[0]
            for array, row in zip(arrays, rows, strict=False)
        )
    ):
        return base
    return np.concatenate(arrays)


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
