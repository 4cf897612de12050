"""A source of random calls of operations: a chooser chooses sizes and options, and the arrays hold random values.

There are two choosers. `AtRandom` takes each choice with the same probability. The tests let hypothesis choose, which
searches, after a failure, for the smallest call that fails. The record of an operation says how a call of it is drawn,
and does not depend on who chooses.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from numpygpt.layers import parameters as p
from numpygpt.layers import transformer_block
from numpygpt.model.config import ACTIVATIONS, POSITIONS, GPTConfig
from numpygpt.model.initialization import allocate
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.ops.weighted_mean import WAYS
from numpygpt.shapes import Array
from numpygpt.tree import Trained, everything, mapped, named

Choice = TypeVar("Choice")


@runtime_checkable
class Chooser(Protocol):
    """What makes the choices. The first of several choices counts as the simplest, and so does the smallest integer."""

    def integer(self, lowest: int, highest: int) -> int:
        """One of lowest, ..., highest."""

    def one_of(self, choices: Sequence[Choice]) -> Choice:
        """One of them."""


class AtRandom:
    """Each choice with the same probability."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def integer(self, lowest: int, highest: int) -> int:
        """One of lowest, ..., highest."""
        return int(self.rng.integers(lowest, highest + 1))

    def one_of(self, choices: Sequence[Choice]) -> Choice:
        """One of them."""
        return choices[self.integer(0, len(choices) - 1)]


class Only(frozenset[str]):
    """Some names. As a function it says whether a name is among them, so it can say which leaves are trained."""

    def __call__(self, name: str) -> bool:
        """Whether the name is among them."""
        return name in self


class Source:
    """What draws the parts of a call: sizes and options from a chooser, and arrays of random values.

    choose     the chooser
    seed       the seed of the arrays
    ordinary   whether all values have the scale 1, and a LayerNorm has at least three features: with two it has nearly
               no gradient, because its output is the sign of their difference
    """

    def __init__(self, choose: Chooser, seed: int, *, ordinary: bool = False) -> None:
        self.choose, self.ordinary = choose, ordinary
        self.rng = np.random.default_rng(seed)

    # Sizes and options

    def size(self, largest: int = 4) -> int:
        """One of 1, ..., largest."""
        return self.choose.integer(1, largest)

    def features(self, largest: int = 7) -> int:
        """How many features a LayerNorm normalizes, or a head has."""
        return self.choose.integer(3 if self.ordinary else 1, largest)

    def rows(self) -> list[int]:
        """The sizes of an array's leading axes, of which there are one, two or three."""
        return [self.size() for _ in range(self.size(3))]

    def yes(self) -> bool:
        """Whether an option is on; the simplest choice is that it is not."""
        return self.choose.one_of([False, True])

    def activation(self) -> str:
        """A form of GELU."""
        return self.choose.one_of(ACTIVATIONS)

    def norm_eps(self) -> float:
        """What a norm adds to the variance: so much that it hardly matters, or that it does."""
        return self.choose.one_of([1e-5, 0.5, 100.0])

    def drop_rate(self) -> float:
        """A rate of dropout."""
        return self.choose.one_of([0.0, 0.1, 0.5])

    def wanted(self, *names: str) -> tuple[str, ...]:
        """The names of the arguments that get a gradient: all of these, or any choice of them."""
        return tuple(name for name in names if not self.yes()) if self.yes() else names

    def trained(self, node: Any) -> Trained:
        """Which leaves of the node are trained: all, about half of them, a few or none."""
        share = self.choose.one_of([1.0, 0.5, 0.1, 0.0])
        return everything if share == 1 else Only(name for name, _ in named(node) if self.rng.random() < share)

    def config(self) -> GPTConfig:
        """The configuration of a small model."""
        smallest = 2 if self.ordinary else 1
        n_heads, head_dim = self.choose.integer(smallest, 3), self.choose.integer(smallest, 4)
        return GPTConfig(
            vocab_size=self.choose.integer(2, 9),
            context_length=self.size(6),
            emb_dim=n_heads * head_dim,
            n_heads=n_heads,
            n_layers=self.size(2),
            drop_rate=self.drop_rate(),
            qkv_bias=self.yes(),
            tie_weights=self.yes(),
            position="learned" if n_heads * head_dim % 2 else self.choose.one_of(POSITIONS),
            activation=self.activation(),
            bias=not self.yes(),
            norm_eps=self.norm_eps(),
        )

    # Arrays

    def scale(self) -> float:
        """How large the values of an array are."""
        return 1.0 if self.ordinary else self.choose.one_of([1.0, 1e-3, 1e-2, 1e-1, 1e1, 1e2, 1e3])

    def normal(self, *shape: int) -> Array:
        """An array of this shape of normal values of one scale, float64."""
        return self.scale() * np.asarray(self.rng.standard_normal(shape))

    def ids(self, vocab_size: int, shape: int | Sequence[int]) -> Array:
        """Token ids of this shape, of which only a few are different, so that some come more than once."""
        different = self.choose.integer(1, vocab_size)
        return self.rng.permutation(vocab_size)[self.rng.integers(0, different, shape)]

    def targets(self, vocab_size: int, shape: int | Sequence[int], ignore_index: int = IGNORE_INDEX) -> Array:
        """Target ids of this shape. Some may be `ignore_index`, which does not count; at least one counts."""
        targets = self.ids(vocab_size, shape)
        targets[self.rng.random(shape) < self.choose.one_of([0.0, 0.3])] = ignore_index
        if (targets == ignore_index).all():
            targets.flat[-1] = self.choose.one_of([i for i in range(vocab_size) if i != ignore_index])
        return targets

    def weights(self, shape: tuple[int, int]) -> Array:
        """Weights of tokens, numbers or booleans. Some are 0, perhaps those of a whole sequence, or all."""
        weights = np.asarray(self.rng.random(shape) * (self.rng.random(shape) < self.choose.one_of([1.0, 0.7, 0.3])))
        if self.yes():
            weights[0] = 0
        return weights > 0 if self.yes() else weights

    def mean(self) -> dict[str, Any]:
        """The options of a weighted mean."""
        options: dict[str, Any] = {"over": self.choose.one_of(WAYS)}
        return {**options, "normalizer": 7.5} if self.yes() else options

    def keep(self, shape: Sequence[int], drop_rate: float) -> Array | None:
        """A mask for dropout, or None, which drops nothing."""
        return self.rng.random(shape) >= drop_rate if self.yes() else None

    def visible(self, queries: int, keys: int, sequences: int) -> Any:
        """Which keys a query may see: a word, or booleans (sequences, 1, queries, keys), by which it may see no key."""
        by = self.choose.one_of(["causal", "all", "a mask"])
        if by != "a mask":
            return by
        return self.rng.random((sequences, 1, queries, keys)) < self.choose.one_of([0.6, 0.3, 0.9])

    # Parameters

    def block(self) -> tuple[p.TransformerBlock, int]:
        """The parameters of a block, and the number of its heads."""
        n_heads, head_dim = self.size(3), self.features(4)
        biases = {"qkv_bias": self.yes(), "bias": not self.yes()}
        return self.filled(block_parameters(n_heads, head_dim, **biases)), n_heads

    def block_masks(self, shape: tuple[int, int, int], n_heads: int, rate: float) -> transformer_block.DropoutMasks:
        """The dropout masks of a block for an x of this shape (B, T, D)."""
        B, T, _ = shape
        return transformer_block.DropoutMasks(
            *(self.keep(site, rate) for site in ((B, n_heads, T, T), shape, shape))
        )

    def filled(self, node: Any) -> Any:
        """A node of the same shapes with normal values; the weights of queries, keys and values may be in one array."""
        filled = mapped(lambda array: self.normal(*array.shape), node)
        return with_attention(filled, lambda att: stacked(att) if self.yes() else att)


def at_random(seed: int) -> Source:
    """A source that chooses at random, and whose values are ordinary."""
    return Source(AtRandom(np.random.default_rng(seed)), seed, ordinary=True)


def block_parameters(
    n_heads: int, head_dim: int, *, qkv_bias: bool = True, bias: bool = True
) -> p.TransformerBlock:
    """The parameters of a block, which are not filled yet."""
    config = GPTConfig(1, 1, n_heads * head_dim, n_heads, 1, 0.0, qkv_bias, bias=bias)
    return allocate(config, np.float64).trf_blocks[0]


def random_block(source: Source, n_heads: int, head_dim: int, *, biases: bool = True) -> p.TransformerBlock:
    """The parameters of a block with biases everywhere or nowhere, filled with normal values."""
    unfilled = block_parameters(n_heads, head_dim, qkv_bias=biases, bias=biases)
    block: p.TransformerBlock = random_parameters(source, unfilled)
    return block


def random_parameters(source: Source, node: Any) -> Any:
    """A node of the same shapes with normal values. The weights of queries, keys and values are in one array."""
    return with_attention(mapped(lambda array: source.normal(*array.shape), node), stacked)


def with_attention(node: Any, function: Callable[[p.MultiHeadAttention], Any]) -> Any:
    """The node with `function` applied to each of its attention layers."""
    if isinstance(node, p.MultiHeadAttention):
        return function(node)
    if isinstance(node, tuple) and any(isinstance(child, tuple) for child in node):
        children = [with_attention(child, function) for child in node]
        return node._make(children) if hasattr(node, "_make") else tuple(children)
    return node


def stacked(att: p.MultiHeadAttention) -> p.StackedAttention:
    """The same parameters with those of queries, keys and values in one array."""
    three = [node for node in (att.W_query, att.W_key, att.W_value) if isinstance(node, p.Linear)]
    biases = [projection.bias for projection in three if projection.bias is not None]
    weight = np.concatenate([projection.weight for projection in three])
    return p.StackedAttention(p.Linear(weight, np.concatenate(biases) if biases else None), att.out_proj)
