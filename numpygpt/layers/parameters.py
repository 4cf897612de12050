"""The parameters of a GPT: a tree with the shape of the model, whose paths are PyTorch's parameter names.

A node is a NamedTuple with a field a child, or a tuple where PyTorch numbers its children (`trf_blocks.0`,
`ff.layers.2`), so `named(tree)` yields the names, the shapes and the order of PyTorch's state dict. Gradients come back
in the same tree.
"""

from typing import NamedTuple

import numpy as np

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
