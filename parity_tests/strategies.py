"""What hypothesis draws: sizes and scales, which it shrinks, and the seed of the random numbers in the arrays."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from numpygpt.model.config import POSITIONS, GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.initialization import allocate
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.tree import named
from torchgpt.checks.parity import Batch

seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([1e0, 1e-3, 1e-2, 1e-1, 1e1, 1e2, 1e3])
drop_rates = st.sampled_from([0.0, 0.1, 0.5])


class Source:
    """Sizes from hypothesis, arrays of random numbers; ordinary ones have the scale 1 and at least three features.

    (A LayerNorm over two numbers has nearly no gradient: its output is the sign of their difference.)
    """

    def __init__(self, draw, ordinary):
        self.draw, self.ordinary = draw, ordinary
        self.rng = np.random.default_rng(draw(seeds))

    def size(self, largest=4):
        return self.draw(st.integers(1, largest))

    def features(self, largest=7):
        return self.draw(st.integers(3 if self.ordinary else 1, largest))

    def rows(self):
        """The leading axes of an array: one, two or three."""
        return self.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))

    def scale(self):
        return 1.0 if self.ordinary else self.draw(scales)

    def normal(self, *shape):
        return self.scale() * self.rng.standard_normal(shape)

    def ids(self, vocab_size, shape):
        """Few different ids, so that some come more than once."""
        different = self.draw(st.integers(1, vocab_size))
        return self.rng.permutation(vocab_size)[self.rng.integers(0, different, shape)]

    def targets(self, vocab_size, shape, ignore_index=IGNORE_INDEX):
        """Ids some of which do not count; at least one does."""
        targets = self.ids(vocab_size, shape)
        targets[self.rng.random(shape) < self.draw(st.sampled_from([0.0, 0.3]))] = ignore_index
        if (targets == ignore_index).all():
            targets.flat[-1] = self.draw(st.sampled_from([i for i in range(vocab_size) if i != ignore_index]))
        return targets

    def keep(self, shape, drop_rate):
        """A mask that keeps all, or nothing but a few; or None, for no dropout."""
        return self.rng.random(shape) >= drop_rate if self.draw(st.booleans()) else None

    def config(self):
        smallest = 2 if self.ordinary else 1
        n_heads, head_dim = self.draw(st.integers(smallest, 3)), self.draw(st.integers(smallest, 4))
        position = "learned" if n_heads * head_dim % 2 else self.draw(st.sampled_from(POSITIONS))
        return GPTConfig(
            vocab_size=self.draw(st.integers(2, 9)),
            context_length=self.size(6),
            emb_dim=n_heads * head_dim,
            n_heads=n_heads,
            n_layers=self.size(2),
            drop_rate=self.draw(drop_rates),
            qkv_bias=self.draw(st.booleans()),
            tie_weights=self.draw(st.booleans()),
            position=position,
        )


class Step(NamedTuple):
    """A training step on a random model; `make` makes its arrays, outside of hypothesis' drawing.

    scales   of the parameters, by their names without the block's number; None for weights as they are initialized,
             with norms that shift and scale
    """

    config: GPTConfig
    seed: int
    scales: Mapping[str, float] | None
    batch: Batch

    def make(self, dtype):
        """The model and the batch."""
        rng = np.random.default_rng(self.seed)
        model = GPTModel(self.config, self.seed, dtype)
        for name, parameter in model.named_parameters().items():
            if self.scales is not None:
                parameter[...] = self.scales[_kind(name)] * rng.standard_normal(parameter.shape)
            elif "norm" in name:
                parameter += rng.uniform(-0.5, 0.5, parameter.shape)
        return model, self.batch


def _kind(name):
    return re.sub(r"trf_blocks\.\d+\.", "", name)


KINDS = sorted({_kind(name) for name, _ in named(allocate(GPTConfig(1, 1, 1, 1, 1, 0.0, True), np.float64))})


@st.composite
def steps(draw, *, ordinary=False):
    """With the initial weights or with weights of any scale; from the loss or from a random cotangent of the logits."""
    source = Source(draw, ordinary)
    config = source.config()
    shape = source.size(3), source.size(config.context_length)
    random_cotangent = draw(st.booleans())
    batch = Batch(
        inputs=source.ids(config.vocab_size, shape),
        targets=source.targets(config.vocab_size, shape),
        dropout_seed=draw(st.none() | seeds) if config.drop_rate else None,
        d_logits=source.normal(*shape, config.vocab_size).astype(np.float32) if random_cotangent else None,
    )
    return Step(config, draw(seeds), None if ordinary else {kind: draw(scales) for kind in KINDS}, batch)
