"""What hypothesis draws: sizes and scales, which it shrinks, and the seed of the random numbers in the arrays."""

import numpy as np
from hypothesis import strategies as st

from numpygpt.config import GPTConfig
from numpygpt.model import GPTModel
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from torchgpt.parity import Batch

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
        n_heads, half = self.size(3), self.draw(st.integers(2 if self.ordinary else 1, 2))
        head_dim = self.draw(st.integers(half, 2 * half))
        position = "learned" if n_heads * head_dim % 2 else self.draw(st.sampled_from(["learned", "sinusoidal"]))
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

    def model(self, dtype):
        """A model with random weights: of the book's size and with norms that scale and shift, or of any size."""
        model = GPTModel(self.config(), self.draw(seeds), dtype)
        for name, parameter in model.named_parameters().items():
            if not self.ordinary:
                parameter[...] = self.normal(*parameter.shape)
            elif "norm" in name:
                parameter += self.rng.uniform(-0.5, 0.5, parameter.shape)
        return model

    def batch(self, config):
        """Token ids, and either targets or a random cotangent of the logits; dropout at every site, or at none."""
        shape = self.size(3), self.size(config.context_length)
        random_cotangent = self.draw(st.booleans())
        return Batch(
            inputs=self.ids(config.vocab_size, shape),
            targets=self.targets(config.vocab_size, shape),
            dropout_seed=self.draw(st.none() | seeds) if config.drop_rate else None,
            d_logits=self.normal(*shape, config.vocab_size).astype(np.float32) if random_cotangent else None,
        )


@st.composite
def steps(draw, dtype, *, ordinary=False):
    """A model and a batch to take a step on."""
    source = Source(draw, ordinary)
    model = source.model(dtype)
    return model, source.batch(model.config)
