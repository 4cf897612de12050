"""What hypothesis draws: sizes and scales, which it shrinks, and the seed of the random values in the arrays."""

import random
import re
from collections.abc import Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from numpygpt.checks.conform.cases import Hypothesis
from numpygpt.checks.source import Source
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.initialization import allocate
from numpygpt.tree import named
from torchgpt.checks.parity import Batch

seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([1e0, 1e-3, 1e-2, 1e-1, 1e1, 1e2, 1e3])


@contextmanager
def source(draw, ordinary):
    """Within the `with`, a source of calls.

    While hypothesis draws, nobody may use the module `random`. But the checks of annotations use it, to look at some
    item of a container.
    """
    state = random.getstate()
    try:
        yield Source(Hypothesis(draw), draw(seeds), ordinary=ordinary)
    finally:
        random.setstate(state)


@st.composite
def calls(draw, record, *, ordinary=False):
    """Calls of an operation, as its record draws them."""
    with source(draw, ordinary) as drawn:
        return record.draw(drawn)


class Step(NamedTuple):
    """A training step on a random model. `make` makes its arrays, after hypothesis has drawn.

    scales   the scales of the parameters, by their names without the number of the block; None: the weights are as they
             are initialized, except that the norms shift and scale
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
    """Steps with initial weights or weights of any scale, from the loss or from a random cotangent of the logits."""
    with source(draw, ordinary) as drawn:
        config = drawn.config()
        shape = drawn.size(3), drawn.size(config.context_length)
        random_cotangent = draw(st.booleans())
        batch = Batch(
            inputs=drawn.ids(config.vocab_size, shape),
            targets=drawn.targets(config.vocab_size, shape),
            dropout_seed=draw(st.none() | seeds) if config.drop_rate else None,
            d_logits=drawn.normal(*shape, config.vocab_size).astype(np.float32) if random_cotangent else None,
        )
    return Step(config, draw(seeds), None if ordinary else {kind: draw(scales) for kind in KINDS}, batch)
