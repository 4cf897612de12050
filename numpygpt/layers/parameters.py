"""The parameters of a GPT: a tree with the shape of the model, whose paths are PyTorch's parameter names.

The type of a node says how it is applied: `numpygpt.layers.projection` goes by it. Gradients come back in the same
tree, in which a leaf that is not trained has None.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from numpygpt.shapes import Array, Inexact


class Embedding(NamedTuple):
    """A table with a row for each id: V tokens, or C positions."""

    weight: Inexact[Array, "V D"]


class Sinusoids(NamedTuple):
    """A table of positions that is fixed and therefore no parameter: a node without leaves."""

    table: Inexact[Array, "C D"]

    def children(self) -> dict[str, Any]:
        """None."""
        return {}

    def with_children(self, by_name: Mapping[str, Any]) -> "Sinusoids":
        """The node itself, which has none."""
        assert not by_name
        return self


class Linear(NamedTuple):
    """A matrix from D features to F, out x in as PyTorch keeps it, and perhaps a bias."""

    weight: Inexact[Array, "F D"]
    bias: Inexact[Array, "F"] | None = None


class LayerNorm(NamedTuple):
    """What each normalized feature is multiplied by, and what is then perhaps added."""

    scale: Inexact[Array, "D"]
    shift: Inexact[Array, "D"] | None = None


class FeedForward(NamedTuple):
    """Linear from D to 4 D, GELU, Linear from 4 D to D."""

    layers: tuple[Linear, tuple[()], Linear]  # GELU has no parameters


class MultiHeadAttention(NamedTuple):
    """Four projections from D to D; the rows of the first three are the heads', K rows each, one head after another."""

    W_query: Linear
    W_key: Linear
    W_value: Linear
    out_proj: Linear


class StackedAttention(NamedTuple):
    """The same, with queries', keys' and values' weights in one array, the three below each other.

    So one product serves all three. They are shown as three children, which are views of the one array.
    """

    qkv: Linear  # (3 D, D) and (3 D)
    out_proj: Linear

    @property
    def W_query(self) -> Linear:
        """The first D rows."""
        return self._third(0)

    @property
    def W_key(self) -> Linear:
        """The next D rows."""
        return self._third(1)

    @property
    def W_value(self) -> Linear:
        """The last D rows."""
        return self._third(2)

    def _third(self, number: int) -> Linear:
        return Linear._make(
            None if array is None else array[number * len(array) // 3 : (number + 1) * len(array) // 3]
            for array in self.qkv
        )

    def children(self) -> dict[str, Any]:
        """By PyTorch's names."""
        return {"W_query": self.W_query, "W_key": self.W_key, "W_value": self.W_value, "out_proj": self.out_proj}

    def with_children(self, by_name: Mapping[str, Any]) -> MultiHeadAttention:
        """Other arrays need not lie below each other."""
        return MultiHeadAttention(**by_name)


class TransformerBlock(NamedTuple):
    """In PyTorch's order, which is not that of the computation: norm1 comes before att and norm2 before ff."""

    att: MultiHeadAttention | StackedAttention
    ff: FeedForward
    norm1: LayerNorm
    norm2: LayerNorm


class Body(NamedTuple):
    """From token ids to the final norm."""

    tok_emb: Embedding
    pos_emb: Embedding | Sinusoids
    trf_blocks: tuple[TransformerBlock, ...]
    final_norm: LayerNorm


class GPT(NamedTuple):
    """A body and a language head; with tied weights out_head.weight is tok_emb.weight, the same array."""

    tok_emb: Embedding
    pos_emb: Embedding | Sinusoids
    trf_blocks: tuple[TransformerBlock, ...]
    final_norm: LayerNorm
    out_head: Linear

    @property
    def body(self) -> Body:
        """All but the head."""
        return Body(*self[:4])
