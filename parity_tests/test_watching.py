"""A watch may keep what it was told: the arrays are the computation's own, and nothing changes them afterwards."""

from dataclasses import replace

import numpy as np
import pytest

from numpygpt.model import body
from numpygpt.model.config import GPTConfig
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.training.adamw import AdamW
from numpygpt.training.clipping import clip_grad_norm
from numpygpt.tree import everything, nothing
from numpygpt.watch import under, unwatched
from parity_tests.small_models import model_of

LEARNED = GPTConfig(11, 6, 12, 3, n_layers=2, drop_rate=0.25, qkv_bias=True)
CONFIGS = {
    "learned": LEARNED,
    "tied": replace(LEARNED, tie_weights=True),
    "sinusoidal, exact GELU": replace(LEARNED, position="sinusoidal", activation="gelu_erf"),
    "no dropout, no biases": replace(LEARNED, drop_rate=0.0, qkv_bias=False, bias=False, norm_eps=0.1),
}
INPUTS, TARGETS = np.random.default_rng(0).integers(0, 11, (2, 2, 5))

each_way = pytest.mark.parametrize("attention", ["math", "flash"])
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))


class Keeping:
    """A watch that keeps each array itself, and a copy of it as it was when it was told."""

    def __init__(self):
        self.told = []

    def __call__(self, name, array):
        self.told.append((name, array, np.copy(array)))

    @property
    def names(self):
        return [name for name, _, _ in self.told]

    def assert_unchanged(self):
        assert self.told
        for name, array, copy in self.told:
            assert np.array_equal(array, copy), name


@each_way
@pytest.mark.parametrize(
    ("config", "checkpoint_activations"),
    [*((config, False) for config in CONFIGS.values()), (LEARNED, True)],
    ids=[*CONFIGS, "checkpoints"],
)
def test_a_watch_finds_in_what_it_kept_what_it_was_told(config, attention, checkpoint_activations):
    """This holds through a whole training step, and the optimizer's step after it, which changes the weights."""
    model = model_of(config, 0)
    model.attention, model.checkpoint_activations = attention, checkpoint_activations
    watch = Keeping()
    _, grads = model.loss_and_grads(INPUTS, TARGETS, rng=TorchGenerator(1), watch=watch)
    watch.assert_unchanged()
    clip_grad_norm(grads, 1e-3)
    AdamW(model, lr=0.1).step(grads)
    model.loss_and_grads(TARGETS, INPUTS, rng=TorchGenerator(2))
    watch.assert_unchanged()
    assert len(set(watch.names)) == len(watch.names), "each is told once"
    assert {"logits", "loss", "d_logits", "d_tok_emb"} <= set(watch.names)


@each_way
@each_config
def test_through_forward_and_backward(config, attention):
    model = model_of(config, 0)
    model.attention = attention
    watch = Keeping()
    logits, saved = model.forward(INPUTS, masks=model.draw_dropout_masks(TorchGenerator(1), 2, 5), watch=watch)
    grads = model.backward(np.random.default_rng(2).standard_normal(logits.shape), saved, watch=watch)
    for gradient in grads.values():
        gradient[...] = np.nan
    watch.assert_unchanged()


@each_way
@pytest.mark.parametrize("trained", [nothing, lambda name: "norm2" in name, everything], ids=["none", "some", "all"])
def test_whatever_is_trained_and_wherever_tokens_stand(attention, trained):
    model = model_of(LEARNED, 0)
    model.attention = attention
    positions = np.array([[4, 2, 0, 1, 3], [0, 1, 2, 3, 5]])
    seen = np.random.default_rng(0).random((2, 1, 5, 5)) < 0.6
    watch = Keeping()
    logits, saved = model.forward(INPUTS, positions=positions, visible=seen, trained=trained, watch=watch)
    model.backward(np.random.default_rng(2).standard_normal(logits.shape), saved, consume=True, watch=watch)
    watch.assert_unchanged()


@each_way
@pytest.mark.parametrize("config", [LEARNED, CONFIGS["sinusoidal, exact GELU"]], ids=["learned", "sinusoidal"])
def test_through_decoding_with_a_past_that_is_gone_on_from_twice(config, attention):
    model = model_of(config, 0)
    model.attention = attention
    watch = Keeping()
    _, past = model.decode(INPUTS[:, :2], watch=watch)
    for tokens in (TARGETS, INPUTS):
        _, present = model.decode(tokens[:, 2:4], past, watch=watch)
        model.decode(tokens[:, 4:], present, watch=watch)
    watch.assert_unchanged()
    assert watch.names.count("logits") == 5


def test_embeddings_given_as_inputs_are_told_and_left_alone():
    model = model_of(LEARNED, 0)
    embeddings = np.random.default_rng(0).standard_normal((2, 5, 12))
    before, watch = embeddings.copy(), Keeping()
    hidden, saved = body.forward(embeddings, model.parameters.body, n_heads=3, wants_x=True, watch=watch)
    d_embeddings, _ = body.backward(np.ones_like(hidden) + hidden, saved, watch=watch)
    watch.assert_unchanged()
    assert np.array_equal(embeddings, before)
    assert watch.told[0][0] == "tok_emb"
    assert watch.told[0][1] is embeddings
    assert watch.told[-1][0] == "d_tok_emb"
    assert watch.told[-1][1] is d_embeddings


def test_parts_are_told_under_their_paths_and_the_watch_that_does_not_look_stays_itself():
    watch = Keeping()
    part = under(under(watch, "trf_blocks.0"), "att")
    part("queries", 1)
    part("d_queries", 2)
    assert watch.names == ["trf_blocks.0.att.queries", "d_trf_blocks.0.att.queries"]
    assert under(under(unwatched, "trf_blocks.0"), "att") is unwatched
