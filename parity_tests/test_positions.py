"""Sinusoidal positions: the table against the paper's formula, and the models that have it against each other."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchgpt
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import read_checkpoint
from numpygpt.model.config import GPT_CONFIG_124M, GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_of, saved_config
from numpygpt.model.sizes import num_parameters
from numpygpt.ops import sinusoidal_positions
from numpygpt.random.torch_generator import TorchGenerator
from parity_tests import properties
from parity_tests.command import TRAINING, run, write_text
from parity_tests.properties import agree
from parity_tests.small_models import assert_same_gradients
from torchgpt.model import SinusoidalPositions

CONFIG = replace(properties.CONFIG, position="sinusoidal")
TIED = replace(CONFIG, tie_weights=True)
LEARNED = properties.CONFIG

lengths = st.integers(1, 40)
even_widths = st.integers(1, 12).map(lambda pairs: 2 * pairs)

# The table


@given(C=lengths, D=even_widths)
def test_the_table_is_the_papers_formula(C, D):
    expected = [
        [(math.cos if i % 2 else math.sin)(t / 10_000 ** (i // 2 * 2 / D)) for i in range(D)] for t in range(C)
    ]
    agree(sinusoidal_positions.table(C, D, np.float64), np.array(expected), "table")


@given(C=lengths, D=even_widths)
def test_numpys_table_is_pytorchs(C, D):
    twin = SinusoidalPositions(C, D)(torch.arange(C)).numpy()
    agree(sinusoidal_positions.table(C, D, np.float64), twin, "table")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_the_table_is_rounded_once_to_the_models_dtype(dtype):
    table = sinusoidal_positions.table(1024, 6, dtype)
    assert table.dtype == dtype
    assert np.array_equal(table, sinusoidal_positions.table(1024, 6, np.float64).astype(dtype))


@given(t=st.integers(0, 20), k=st.integers(0, 20), D=even_widths)
def test_moving_on_turns_every_pair_by_an_angle_of_its_own(t, k, D):
    table = sinusoidal_positions.table(41, D, np.float64)
    sines, cosines = table[:, 0::2], table[:, 1::2]
    agree(sines[t + k], cosines[k] * sines[t] + sines[k] * cosines[t], "sines")
    agree(cosines[t + k], cosines[k] * cosines[t] - sines[k] * sines[t], "cosines")


# The models


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_every_activation_and_gradient_is_pytorchs(config):
    """There is dropout. In PyTorch too the table is not a parameter, and has no gradient."""
    expected = properties.reference(config)
    seen = properties.training_step(properties.model_of(config))
    assert "pos_emb" in expected
    assert not [name for name in seen if name.endswith("pos_emb") and name.startswith("d_")]
    assert set(expected) <= set(seen)
    for name in expected:
        if not name.endswith("W_key.bias"):  # it is zero except for rounding
            agree(seen[name], expected[name], name)


@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
@pytest.mark.parametrize(
    ("positions", "said"),
    [
        ([[0, 1], [2, -1]], r"position -1 is outside of context_length \d+; expected from 0 to"),
        ([[0, 1], [2, 10**6]], r"position 1000000 is outside of context_length \d+; expected from 0 to"),
        ([[0.0, 1.0], [0.0, 1.0]], r"positions are float64 \(2, 2\); expected integers"),
        ([[0, 1]], r"positions are int64 \(1, 2\); expected integers shaped as the token ids, \(2, 2\)"),
    ],
)
def test_positions_that_the_tokens_cannot_have(position, positions, said):
    model = GPTModel(replace(CONFIG, position=position))
    with pytest.raises(InputError, match=said):
        model.forward(np.array([[1, 2], [3, 4]]), positions=np.array(positions))


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_the_initial_weights_are_pytorchs_and_positions_draw_nothing(qkv_bias):
    config = replace(CONFIG, qkv_bias=qkv_bias)
    rng = TorchGenerator(123)
    weights = GPTModel(config, rng).state_dict()
    torch.manual_seed(123)
    twin = torchgpt.GPTModel(config).state_dict()
    assert list(weights) == list(twin)
    assert not any("pos_emb" in name for name in weights)
    for name, array in weights.items():
        assert np.array_equal(array, twin[name].numpy()), name
    assert np.array_equal(rng.to_torch_state(), torch.get_rng_state().numpy())
    learned = GPTModel(replace(config, position="learned"), 123).state_dict()
    assert np.array_equal(learned["tok_emb.weight"], weights["tok_emb.weight"])  # it is drawn first


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_models_cross_between_numpy_and_pytorch(dtype):
    model = GPTModel(CONFIG, dtype=dtype)
    twin = torchgpt.to_torch(model)
    assert torchgpt.to_numpy(twin).config == CONFIG
    logits = twin(torch.from_numpy(properties.INPUTS)).detach()
    assert logits.numpy().dtype == dtype
    if dtype == np.float64:
        agree(model(properties.INPUTS), logits, "logits")
    twin.trf_blocks[0].norm3 = twin.trf_blocks[0].norm2
    with pytest.raises(InputError, match=r"missing: none; unexpected: trf_blocks\.0\.norm3"):
        torchgpt.to_numpy(twin)


def test_decoding_with_a_cache_knows_where_it_is():
    model = GPTModel(CONFIG, dtype=np.float64)
    full = model(properties.INPUTS)
    logits, past = model.decode(properties.INPUTS[:, :2])
    agree(logits, full[:, 1], "prompt")
    for t in range(2, properties.T):
        logits, past = model.decode(properties.INPUTS[:, t : t + 1], past)
        agree(logits, full[:, t], f"token {t}")


@pytest.mark.parametrize("attention", ["math", "flash"])
@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
def test_two_texts_in_one_row_have_the_gradients_of_two_rows(position, attention):
    """Each token sees its own text alone, and is counted from its start. The mean runs over the tokens of both."""
    config = replace(properties.CONFIG, position=position, drop_rate=0.0)
    model = GPTModel(config, dtype=np.float64, attention=attention)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 1, 5))
    lengths = (3, 2)
    texts = [slice(0, 3), slice(3, 5)]
    visible = np.zeros((1, 1, 5, 5), bool)
    for text in texts:
        visible[:, :, text, text] = np.tri(text.stop - text.start, dtype=bool)
    positions = np.array([[0, 1, 2, 0, 1]])
    loss, grads = model.loss_and_grads(*ids, positions=positions, visible=visible)
    alone = [model.loss_and_grads(*ids[:, :, text]) for text in texts]
    agree(loss, np.average([loss for loss, _ in alone], weights=lengths), "loss")
    expected = {name: np.average([of[name] for _, of in alone], axis=0, weights=lengths) for name in grads}
    assert_same_gradients(grads, expected)


def test_positions_matter():
    model = GPTModel(CONFIG, dtype=np.float64)
    same_tokens = np.full((1, 3), 5)
    logits = model(same_tokens)[0]
    assert not np.array_equal(logits[0], logits[1])
    assert not np.array_equal(logits[1], logits[2])


def test_parameters_are_counted_without_positions():
    learned, sinusoidal = (GPTModel(config).num_parameters() for config in (LEARNED, CONFIG))
    assert learned - sinusoidal == LEARNED.context_length * LEARNED.emb_dim
    assert num_parameters(CONFIG) == sinusoidal


# What users meet


def test_learned_positions_are_the_default():
    assert GPTConfig.of(GPT_CONFIG_124M).position == "learned"
    assert GPTConfig.of({**GPT_CONFIG_124M, "position": "sinusoidal"}).position == "sinusoidal"


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="position is 'rotary'; expected one of: learned, sinusoidal"):
        replace(CONFIG, position="rotary")
    with pytest.raises(InputError, match="emb_dim 9 is odd; sinusoidal positions pair a sine with a cosine"):
        replace(CONFIG, emb_dim=9)
    assert replace(LEARNED, emb_dim=9).emb_dim == 9


def test_a_learned_table_does_not_load_into_a_sinusoidal_model():
    with pytest.raises(InputError, match=r"unexpected: pos_emb\.weight"):
        GPTModel(CONFIG).load_state_dict(GPTModel(LEARNED).state_dict())


def test_training_resuming_and_generating(tmp_path, capsys):
    text, folder = write_text(tmp_path), tmp_path / "run"
    assert run("train", "--text", text, "--out", folder, "--position", "sinusoidal", *TRAINING) == 0
    checkpoint = read_checkpoint(folder)
    assert saved_config(checkpoint).position == "sinusoidal"
    assert "pos_emb.weight" not in model_of(checkpoint).state_dict()
    assert run("train", "--resume", folder, "--steps", 4) == 0
    assert read_checkpoint(folder).values("run")["step"] == 4
    capsys.readouterr()
    assert run("generate", "--checkpoint", folder, "--prompt", "The", "--max-new-tokens", 5) == 0
    assert capsys.readouterr().out.startswith("The")
    assert run("info", "--checkpoint", folder) == 0
    assert re.search(r"\npos_emb +0 +fixed sinusoids\n", capsys.readouterr().out)
    assert run("train", "--resume", folder, "--position", "learned") == 2
    assert "--position cannot change in a resumed run" in capsys.readouterr().err
