"""The model is composed once: calling, training, inference and decoding are options of one body, head and objective.

So they agree, bit for bit if they multiply the same matrices. Decoding can be watched, inference saves nothing, and the
parts also work with other heads and other losses, without a second model.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from numpygpt.layers import parameters as p
from numpygpt.layers import projection
from numpygpt.layers.transformer_block import NO_MASKS
from numpygpt.model import body
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.objectives import next_token
from numpygpt.ops import cross_entropy, softmax
from numpygpt.tree import named, nothing
from parity_tests import small_models
from parity_tests.command import python
from parity_tests.properties import agree
from parity_tests.small_models import FEWER, arrays_in, assert_agrees, assert_equal, ids_of, model_of
from parity_tests.strategies import seeds
from torchgpt.bridge import to_torch

CONFIG = GPTConfig(11, 6, 12, 3, n_layers=2, drop_rate=0.25, qkv_bias=True)
INPUTS, TARGETS = np.random.default_rng(0).integers(0, 11, (2, 2, 5))

attentions = st.sampled_from(["math", "flash"])
positions = st.sampled_from(["learned", "sinusoidal"])


@st.composite
def configs(draw):
    config = draw(small_models.configs(drop_rate=0.0))
    return replace(config, position="learned" if config.emb_dim % 2 else draw(positions))


# One composition


@FEWER
@given(configs(), seeds, attentions, st.sampled_from([np.float32, np.float64]))
def test_calling_forward_and_the_loss_see_the_same_logits(config, seed, attention, dtype):
    model, in_idx = model_of(config, seed, dtype), ids_of(config, seed)
    model.attention = attention
    logits, _ = model.forward(in_idx)
    seen = {}
    loss, _ = model.loss_and_grads(in_idx, in_idx, watch=seen.__setitem__)
    assert np.array_equal(model(in_idx), logits)
    assert np.array_equal(seen["logits"], logits)
    assert loss == next_token.forward(logits, in_idx)[0]


@FEWER
@given(configs(), seeds, attentions, st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_decoding_in_chunks_of_any_size_gives_the_same_logits(config, seed, attention, chunks):
    config = replace(config, context_length=sum(chunks))
    model, in_idx = model_of(config, seed), ids_of(config, seed)
    model.attention = attention
    full, _ = model.forward(in_idx)
    past, end = None, 0
    for tokens in chunks:
        start, end = end, end + tokens
        logits, past = model.decode(in_idx[:, start:end], past)
        assert_agrees(logits, full[:, end - 1])
    assert past[0].length == config.context_length


@pytest.mark.parametrize("attention", ["math", "flash"])
@pytest.mark.parametrize("chunks", [[5], [3, 2], [1, 4], [1, 1, 1, 1, 1]], ids=str)
def test_a_watch_is_told_every_tensor_of_decoding(attention, chunks):
    """The names and the order are forward's, and each token's row is told once. Scores have the length of the cache."""
    model = model_of(CONFIG, 0)
    model.attention = attention
    expected, told = {}, {}
    model.forward(INPUTS, watch=expected.__setitem__)
    past, end = None, 0
    for tokens in chunks:
        start, end = end, end + tokens
        seen = {}
        logits, past = model.decode(INPUTS[:, start:end], past, watch=seen.__setitem__)
        scores = [name for name in seen if name.rpartition(".")[2] in ("attn_scores", "attn_weights", "dropout")]
        assert [name for name in seen if name not in scores] == [name for name in expected if name not in scores]
        assert (len(scores) == 3 * CONFIG.n_layers) == (attention == "math" or tokens == 1)
        for name in scores:
            assert seen[name].shape == (2, CONFIG.n_heads, tokens, end)
        for name, array in seen.items():
            told.setdefault(name, []).append(array)
    assert np.array_equal(told["logits"][-1][:, 0], logits)
    for name in expected:
        if name.rpartition(".")[2] in ("queries", "keys", "values"):
            assert_agrees(np.concatenate(told[name], axis=2), expected[name])
        elif name.rpartition(".")[2] in ("attn_scores", "attn_weights", "dropout"):
            continue
        elif name == "pos_emb":
            assert np.array_equal(np.concatenate(told[name]), expected[name])
        elif name != "logits":  # decoding computes only those of the last token
            assert_agrees(np.concatenate(told[name], axis=1), expected[name])
    assert_agrees(logits, expected["logits"][:, -1])


# Inference saves nothing


@pytest.mark.parametrize("attention", ["math", "flash"])
@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_inference_saves_no_block_and_no_factor_of_a_product(attention, checkpoint_activations):
    model = model_of(CONFIG, 0)
    model.attention, model.checkpoint_activations = attention, checkpoint_activations
    _, saved = model.forward(INPUTS, trained=nothing)
    assert saved.body.trf_blocks == [None] * CONFIG.n_layers
    assert saved.body.tok_emb is saved.body.pos_emb is None
    assert not list(arrays_in(saved.out_head))
    assert model.backward(np.ones((2, 5, 11)), saved) == {}


def test_the_memory_of_inference_is_one_blocks_however_many_there_are():
    """This runs in a new Python, because the suite's checks of types take memory too."""
    code = """if True:
        import json, sys, tracemalloc
        import numpy as np
        from numpygpt import GPTConfig, GPTModel

        def most_memory(function, *arguments):
            tracemalloc.start()
            function(*arguments)
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return most

        for attention in ("math", "flash"):
            for n_layers in (2, 8):
                model = GPTModel(GPTConfig(11, 64, 48, 4, n_layers, 0.0, False), attention=attention)
                in_idx = np.zeros((2, 64), int)
                _, past = model.decode(in_idx[:, :-1])
                calls = [(model, in_idx), (model.forward, in_idx), (model.decode, in_idx[:, -1:], past)]
                print(json.dumps([most_memory(*call) for call in calls]))
    """
    done = python("-c", code)
    assert done.stderr == ""
    of_two, of_eight, of_two_by_flash, of_eight_by_flash = map(json.loads, done.stdout.splitlines())
    for few, many in ((of_two, of_eight), (of_two_by_flash, of_eight_by_flash)):
        assert many[0] < 1.1 * few[0], "inference"
        assert many[1] > 3 * few[1], "training"
        assert 4 * many[0] < many[1]
        assert 10 * many[2] < many[0], "decoding a token computes and copies nothing of those before"


# Body, head and objective


def hidden_of(model, inputs=INPUTS, **options):
    return body.forward(inputs, model.parameters.body, n_heads=model.config.n_heads, **options)


def torch_hidden_of(twin, inputs=INPUTS):
    """What PyTorch's head reads."""
    seen = {}
    twin(torch.from_numpy(inputs), watch=seen.__setitem__)
    return seen["final_norm"]


def assert_gradients_of_the_body(d_body, twin):
    gradients = dict(named(d_body))
    expected = dict(twin.named_parameters())
    assert set(gradients) == set(expected) - {"out_head.weight"}
    for name, gradient in gradients.items():
        if not name.endswith("W_key.bias"):  # zero, except for rounding
            agree(gradient, expected[name].grad.numpy(), name)


def test_the_model_is_its_body_its_head_and_its_objective():
    model = model_of(CONFIG, 0)
    expected_loss, expected = model.loss_and_grads(INPUTS, TARGETS)
    hidden, saved = hidden_of(model)
    logits, projected = projection.forward(hidden, model.parameters.out_head)
    loss, scored = next_token.forward(logits, TARGETS)
    d_logits = next_token.backward(loss.dtype.type(1), scored).logits
    d_hidden, d_head = projection.backward(d_logits, projected)
    _, d_body = body.backward(d_hidden, saved)
    assert loss == expected_loss
    assert_equal({**dict(named(d_body)), **dict(named(d_head, "out_head"))}, expected)


def test_a_class_head_reads_the_last_token():
    """As in chapter 6 of the book, there are two classes, and the head reads the hidden state of the last token."""
    model, classes = model_of(CONFIG, 0), np.array([1, 0])
    rng = np.random.default_rng(1)
    head = p.Linear(rng.standard_normal((2, 12)), rng.standard_normal(2))
    hidden, saved = hidden_of(model)
    scores, projected = projection.forward(hidden[:, -1], head)
    loss, scored = cross_entropy.forward(scores, classes)
    d_last, d_head = projection.backward(cross_entropy.backward(1.0, scored).logits, projected)
    d_hidden = np.zeros_like(hidden)
    d_hidden[:, -1] = d_last
    _, d_body = body.backward(d_hidden, saved)

    twin = to_torch(model, copy=True)
    weight, bias = (torch.from_numpy(array).requires_grad_() for array in head)
    expected = F.cross_entropy(F.linear(torch_hidden_of(twin)[:, -1], weight, bias), torch.from_numpy(classes))
    expected.backward()
    agree(loss, expected.detach(), "loss")
    agree(d_head.weight, weight.grad, "head's weight")
    agree(d_head.bias, bias.grad, "head's bias")
    assert_gradients_of_the_body(d_body, twin)


def test_a_value_head_gives_a_number_a_token():
    model, wanted = model_of(CONFIG, 0), np.random.default_rng(1).standard_normal((2, 5))
    head = p.Linear(np.random.default_rng(2).standard_normal((1, 12)), np.ones(1))
    hidden, saved = hidden_of(model)
    values, projected = projection.forward(hidden, head)
    d_values = 2 * (values[..., 0] - wanted) / wanted.size
    d_hidden, d_head = projection.backward(d_values[..., np.newaxis], projected)
    _, d_body = body.backward(d_hidden, saved)

    twin = to_torch(model, copy=True)
    weight, bias = (torch.from_numpy(array).requires_grad_() for array in head)
    F.mse_loss(F.linear(torch_hidden_of(twin), weight, bias)[..., 0], torch.from_numpy(wanted)).backward()
    agree(d_head.weight, weight.grad, "head's weight")
    agree(d_head.bias, bias.grad, "head's bias")
    assert_gradients_of_the_body(d_body, twin)


def test_log_probabilities_of_tokens_and_a_loss_with_weights():
    """They are log softmax at the target, with the gradient onehot - softmax. A token's weight may be negative."""
    model, token_weights = model_of(CONFIG, 0), np.random.default_rng(1).standard_normal((2, 5))
    hidden, saved = hidden_of(model)
    logits, projected = projection.forward(hidden, model.parameters.out_head)
    each_alone = [cross_entropy.forward(row[np.newaxis], target)[0] for row, target in by_token(logits, TARGETS)]
    log_probs = -np.reshape(each_alone, TARGETS.shape)
    d_logits = token_weights[..., np.newaxis] * (np.eye(11)[TARGETS] - softmax.forward(logits)[0])
    d_hidden, _ = projection.backward(d_logits, projected)
    _, d_body = body.backward(d_hidden, saved)

    twin = to_torch(model, copy=True)
    expected = torch.log_softmax(twin.out_head(torch_hidden_of(twin)), dim=-1)
    expected = expected.gather(-1, torch.from_numpy(TARGETS)[..., None])[..., 0]
    (expected * torch.from_numpy(token_weights)).sum().backward()
    agree(log_probs, expected.detach(), "log-probabilities")
    assert_gradients_of_the_body(d_body, twin)


def by_token(logits, targets):
    return zip(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1, 1), strict=True)


def test_embeddings_may_stand_in_the_place_of_token_ids_and_have_a_gradient():
    model = model_of(CONFIG, 0)
    masks = model.draw_dropout_masks(np.random.default_rng(3), 2, 5)
    options = {"masks": masks, "drop_rate": CONFIG.drop_rate}
    hidden, saved = hidden_of(model, **options)
    embeddings = model.parameters.tok_emb.weight[INPUTS]
    same, with_gradient = hidden_of(model, embeddings, **options, wants_x=True)
    assert np.array_equal(same, hidden)
    d_hidden = np.random.default_rng(4).standard_normal(hidden.shape)
    d_embeddings, d_body = body.backward(d_hidden, with_gradient)
    none_for_ids, expected = body.backward(d_hidden, saved)
    assert none_for_ids is None
    assert d_body.tok_emb.weight is None
    for token in range(11):
        assert_agrees(d_embeddings[token == INPUTS].sum(axis=0), expected.tok_emb.weight[token])
    assert_equal(dict(named(d_body)), {n: g for n, g in named(expected) if n != "tok_emb.weight"})


def test_where_nothing_is_trained_the_gradient_of_embeddings_is_that_of_full_training():
    model = model_of(CONFIG, 0)
    embeddings = np.random.default_rng(1).standard_normal((2, 5, 12))
    d_hidden = np.random.default_rng(4).standard_normal((2, 5, 12))
    d_embeddings, _ = body.backward(d_hidden, hidden_of(model, embeddings, wants_x=True)[1])
    alone, d_body = body.backward(d_hidden, hidden_of(model, embeddings, wants_x=True, trained=nothing)[1])
    assert np.array_equal(alone, d_embeddings)
    assert not dict(named(d_body))


# Positions


@FEWER
@given(configs(), seeds, st.data())
def test_positions_may_differ_from_row_to_row(config, seed, data):
    """Each row gives what it gives alone. The default is 0, 1, ...; only positions that are used have a gradient."""
    T = data.draw(st.integers(1, config.context_length))
    model, in_idx = model_of(config, seed), ids_of(config, seed, 3, T)
    positions = np.random.default_rng(seed).integers(0, config.context_length, (3, T))
    logits, saved = model.forward(in_idx, positions=positions)
    grads = model.backward(np.random.default_rng(seed).standard_normal(logits.shape), saved)
    for row in range(3):
        rows = slice(row, row + 1)
        assert_agrees(model.forward(in_idx[rows], positions=positions[rows])[0], logits[rows])
    counted = np.tile(np.arange(T), (3, 1))
    assert np.array_equal(model.forward(in_idx, positions=counted)[0], model(in_idx))
    if config.position == "learned":
        assert np.array_equal(grads["pos_emb.weight"].any(axis=1), np.isin(np.arange(config.context_length), positions))


@FEWER
@given(small_models.configs(), seeds)
def test_moved_positions_are_a_moved_table(config, seed):
    """Positions in another order, the same in all rows, give what a model gives whose table has that order."""
    model, in_idx = model_of(config, seed), ids_of(config, seed)
    order = np.random.default_rng(seed).permutation(config.context_length)
    weights = dict(model.named_parameters())
    weights["pos_emb.weight"] = weights["pos_emb.weight"][order]
    moved = GPTModel.from_state_dict(config, weights)
    d_logits = np.random.default_rng(seed).standard_normal((2, config.context_length, config.vocab_size))
    logits, saved = model.forward(in_idx, positions=np.tile(order, (2, 1)))
    expected_logits, expected_saved = moved.forward(in_idx)
    assert np.array_equal(logits, expected_logits)
    grads, expected = model.backward(d_logits, saved), moved.backward(d_logits, expected_saved)
    assert_agrees(grads.pop("pos_emb.weight")[order], expected.pop("pos_emb.weight"))
    assert_equal(grads, expected)


def test_positions_are_an_option_of_the_body_and_of_decoding():
    model = model_of(CONFIG, 0)
    positions = np.array([[4, 2, 0, 1, 3], [0, 1, 2, 3, 5]])
    full, _ = model.forward(INPUTS, positions=positions)
    hidden, _ = hidden_of(model, positions=positions)
    assert np.array_equal(projection.forward(hidden, model.parameters.out_head)[0], full)
    _, past = model.decode(INPUTS[:, :3], positions=positions[:, :3])
    assert_agrees(model.decode(INPUTS[:, 3:], past, positions=positions[:, 3:])[0], full[:, -1])


def test_masks_that_keep_everything_are_no_masks():
    model = model_of(CONFIG, 0)
    everything_kept = body.DropoutMasks(None, (NO_MASKS,) * CONFIG.n_layers)
    assert np.array_equal(model.forward(INPUTS, masks=everything_kept)[0], model(INPUTS))
