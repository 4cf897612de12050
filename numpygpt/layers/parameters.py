"""The parameters of a GPT: a tree with the shape of the model, whose paths are PyTorch's parameter names.

The type of a node says how it is applied: `numpygpt.layers.projection` goes by it. Gradients come back in the same
tree, in which a leaf that is not trained has None.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from numpygpt.numerics.schemes import Quantized
from numpygpt.shapes import Array, Bool, Inexact
from numpygpt.tree import children, with_children


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


class QuantizedLinear(NamedTuple):
    """A matrix from D features to F that stays quantized and frozen, and perhaps a bias.

    It shows the bias alone: codes and constants are no parameters.
    """

    weight: Quantized  # (F, D)
    bias: Inexact[Array, "F"] | None = None

    def children(self) -> dict[str, Any]:
        """The bias."""
        return {"bias": self.bias}

    def with_children(self, by_name: Mapping[str, Any]) -> "QuantizedLinear":
        """The same matrix with another bias."""
        return self._replace(**by_name)


class LoRA(NamedTuple):
    """A projection with side paths of low rank, each with a name of its own; the paths' outputs are added up.

    A merged one has s B @ A added to its base's weight. It is applied as the base alone, and shows the base alone.

    base            the projection
    lora_A, lora_B  {name: matrices (R, D) and (F, R)}
    scales          {name: s}, what the path is multiplied by
    drop_rates      {name: rate} of dropout on the path's input
    keep            {name: (..., D)}, which elements of the input stay, where there is dropout (`with_masks`)
    merged          whether the paths are part of the base
    """

    base: Any
    lora_A: Mapping[str, Linear]
    lora_B: Mapping[str, Linear]
    scales: Mapping[str, float]
    drop_rates: Mapping[str, float]
    keep: Mapping[str, Bool[Array, "..."]] = {}
    merged: bool = False

    def children(self) -> dict[str, Any]:
        """The base's, under their own names, and the paths', as the library peft names them."""
        paths = {} if self.merged else {"lora_A": self.lora_A, "lora_B": self.lora_B}
        return {**children(self.base), **paths}

    def with_children(self, by_name: Mapping[str, Any]) -> "LoRA":
        """The same node with other arrays."""
        own = {name: child for name, child in by_name.items() if name not in PATHS}
        base = with_children(self.base, own)
        return self._replace(base=base, **{name: by_name[name] for name in PATHS if name in by_name})


#: The children of a node `LoRA` that are not its base's.
PATHS = ("lora_A", "lora_B")

#: The nodes that `numpygpt.layers.projection` applies.
Projection = Linear | QuantizedLinear | LoRA


class LayerNorm(NamedTuple):
    """What each normalized feature is multiplied by, and what is then perhaps added."""

    scale: Inexact[Array, "D"]
    shift: Inexact[Array, "D"] | None = None


class FeedForward(NamedTuple):
    """Linear from D to 4 D, GELU, Linear from 4 D to D."""

    layers: tuple[Projection, tuple[()], Projection]  # GELU has no parameters


class MultiHeadAttention(NamedTuple):
    """Four projections from D to D; the rows of the first three are the heads', K rows each, one head after another."""

    W_query: Projection
    W_key: Projection
    W_value: Projection
    out_proj: Projection


class StackedAttention(NamedTuple):
    """The same, with queries', keys' and values' weights in one array, the three below each other.

    So one product serves all three. They are shown as three children, which are views of the one array.
    """

    qkv: Linear  # (3 D, D) and (3 D)
    out_proj: Projection

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
    out_head: Projection

    @property
    def body(self) -> Body:
        """All but the head."""
        return Body(*self[:4])
