"""Which keys a query may see: in forward, backward, tiles and the cache, against PyTorch's own masked attention."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from numpygpt.layers import multi_head_attention
from numpygpt.layers.key_value_cache import KeyValueCache
from numpygpt.model.config import GPTConfig
from numpygpt.ops import attention, flash_attention
from numpygpt.ops.visible import causal_from, hidden
from numpygpt.random.torch_generator import TorchGenerator
from parity_tests.command import python
from parity_tests.properties import agree
from parity_tests.small_models import (
    FEWER,
    assert_agrees,
    assert_equal,
    assert_same_gradients,
    configs,
    ids_of,
    model_of,
)
from parity_tests.strategies import seeds

each_attention = pytest.mark.parametrize(
    ("operation", "options"),
    [(attention, {}), (flash_attention, {"tile": 2}), (flash_attention, {})],
    ids=["attention", "flash_attention, tiles of 2", "flash_attention"],
)


def drawn(seed, past):
    """Queries, keys, values and a cotangent. The queries are at the last positions of the keys."""
    rng = np.random.default_rng(seed)
    T, S = 5, 5 + past
    return rng, [rng.standard_normal((2, 3, length, 4)) for length in (T, S, S, T)]


def pytorchs(queries, keys, values, d_context, seen, keep=None, drop_rate=0.0):
    """Context and gradients by PyTorch's fused attention; with dropout, by the products that define it."""
    tensors = [torch.from_numpy(array).requires_grad_() for array in (queries, keys, values)]
    mask = torch.from_numpy(seen)
    if keep is None:
        context = F.scaled_dot_product_attention(*tensors, attn_mask=mask)
    else:
        scores = tensors[0] @ tensors[1].mT / queries.shape[-1] ** 0.5
        weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)
        context = weights * torch.from_numpy(keep) / (1 - drop_rate) @ tensors[2]
    context.backward(torch.from_numpy(d_context))
    return context.detach(), [tensor.grad for tensor in tensors]


@each_attention
@given(
    seed=seeds,
    past=st.integers(0, 3),
    share=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    drop_rate=st.sampled_from([0.0, 0.3]),
)
def test_attention_with_any_mask_is_pytorchs(operation, options, seed, past, share, drop_rate):
    """Each query sees at least one key: PyTorch gives NaN if it sees none. If it sees one, its gradient is 0."""
    rng, (queries, keys, values, d_context) = drawn(seed, past)
    seen = rng.random((2, 1, 5, 5 + past)) < share
    np.put_along_axis(seen, rng.integers(0, 5 + past, (2, 1, 5, 1)), values=True, axis=-1)
    keep = rng.random((2, 3, 5, 5 + past)) >= drop_rate if drop_rate else None
    context, saved = operation.forward(
        queries, keys, values, visible=seen, keep=keep, drop_rate=drop_rate, **options
    )
    expected, expected_gradients = pytorchs(queries, keys, values, d_context, seen, keep, drop_rate)
    agree(context, expected, "context")
    gradients = operation.backward(d_context, saved)._asdict()
    assert_same_gradients(gradients, {n: g.numpy() for n, g in zip(gradients, expected_gradients, strict=True)})


@each_attention
@given(seed=seeds, past=st.integers(0, 3), dtype=st.sampled_from([np.float32, np.float64]))
def test_a_query_that_sees_no_key_has_context_0_and_gradient_0(operation, options, seed, past, dtype):
    """The other queries give what they give without it, whatever its cotangent is."""
    rng, arrays = drawn(seed, past)
    queries, keys, values, d_context = (array.astype(dtype) for array in arrays)
    seen = rng.random((2, 1, 5, 5 + past)) < 0.5
    blind = rng.random((2, 1, 5)) < 0.4
    blind[0, 0, 1] = True
    seen[blind] = False
    seen[~blind, 0] = True
    context, saved = operation.forward(queries, keys, values, visible=seen, **options)
    gradients = operation.backward(d_context, saved)
    unseeing = np.broadcast_to(blind, (2, 3, 5))
    assert not context[unseeing].any()
    assert not gradients.queries[unseeing].any()
    unseen = ~np.broadcast_to(seen.any(axis=2), (2, 3, 5 + past))
    assert not gradients.keys[unseen].any()
    assert not gradients.values[unseen].any()
    without = np.where(unseeing[..., np.newaxis], 0, d_context)
    for ours, expected in zip(gradients, operation.backward(without, saved), strict=True):
        assert np.isfinite(ours).all()
        assert np.array_equal(ours, expected)
    if dtype == np.float64:
        seeing_key_0 = seen | (blind[..., np.newaxis] & (np.arange(5 + past) == 0))
        expected, expected_gradients = pytorchs(queries, keys, values, without, seeing_key_0)
        agree(context[~unseeing], expected.numpy()[~unseeing], "context")
        for name, gradient, theirs in zip(gradients._fields, gradients, expected_gradients, strict=True):
            agree(gradient, theirs.numpy(), name)


@each_attention
@pytest.mark.parametrize("past", [0, 3])
def test_where_nobody_sees_anything_all_is_0(operation, options, past):
    _, (queries, keys, values, d_context) = drawn(0, past)
    context, saved = operation.forward(queries, keys, values, visible=np.zeros((2, 1, 5, 5 + past), bool), **options)
    assert not context.any()
    assert not any(gradient.any() for gradient in operation.backward(d_context, saved))


@each_attention
@FEWER
@given(seed=seeds, past=st.integers(0, 3))
def test_the_two_words_are_masks(operation, options, seed, past):
    _, (queries, keys, values, d_context) = drawn(seed, past)
    everything = np.ones((2, 1, 5, 5 + past), bool)
    for word, mask in (("all", everything), ("causal", np.tril(everything, past))):
        by_word, saved_by_word = operation.forward(queries, keys, values, visible=word, **options)
        by_mask, saved_by_mask = operation.forward(queries, keys, values, visible=mask, **options)
        assert_agrees(by_word, by_mask)
        for ours, expected in zip(
            operation.backward(d_context, saved_by_word), operation.backward(d_context, saved_by_mask), strict=True
        ):
            assert_agrees(ours, expected)


def test_another_word_is_refused():
    """This runs in a new Python, because the suite's checks of types refuse other words, too."""
    code = """if True:
        import numpy as np
        from numpygpt import GPTConfig, GPTModel, InputError
        for attention in ("math", "flash"):
            model = GPTModel(GPTConfig(11, 4, 6, 2, 1, 0.0, False), attention=attention)
            for word in ("ALL", "both", "past"):
                try:
                    model.forward(np.zeros((1, 3), int), visible=word)
                except InputError as error:
                    print(error)
    """
    done = python("-c", code)
    expected = "visible is {!r}; expected 'causal', 'all' or booleans of shape (B, 1, T, S)\n"
    assert (done.stdout, done.stderr) == (2 * "".join(map(expected.format, ("ALL", "both", "past"))), "")


def test_a_tile_of_causal_attention_has_no_mask_only_if_all_of_it_is_visible():
    for past, first, queries, start, keys in product(range(4), range(4), (1, 2), range(3), range(1, 9)):
        rows, columns = range(first, first + queries), range(start, start + keys)
        mask = hidden("causal", slice(rows.start, rows.stop), slice(columns.start, columns.stop), past)
        expected = [[key > past + query for key in columns] for query in rows]
        assert (np.zeros((queries, keys), bool) if mask is None else mask).tolist() == expected
        assert (mask is None) == (not np.any(expected))


def test_causal_masks_of_sequences_that_begin_later():
    mask = causal_from(np.array([0, 2]), 3, 4)
    assert mask.astype(int).tolist() == [
        [[[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]],
        [[[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]],
    ]


# Layers and the model


@pytest.mark.parametrize("flash", [False, True])
@FEWER
@given(seed=seeds)
def test_a_layer_with_a_past_reads_what_the_mask_shows_it(flash, seed):
    """It reads two parts, the second with a cache of the first, and is compared with the whole at once."""
    rng = np.random.default_rng(seed)
    config = GPTConfig(5, 6, 12, 3, n_layers=1, drop_rate=0.0, qkv_bias=True)
    parameters = model_of(config, seed).parameters.trf_blocks[0].att
    x = rng.standard_normal((2, 6, 12))
    seen = np.tril(rng.random((2, 1, 6, 6)) < 0.5)  # a cache holds no later keys
    options = {"n_heads": 3, "flash": flash}
    y, _ = multi_head_attention.forward(x, parameters, visible=seen, **options)
    cache = KeyValueCache.empty(2, 3, 6, 4, x.dtype)
    first, saved = multi_head_attention.forward(
        x[:, :4], parameters, visible=seen[:, :, :4, :4], past=cache, **options
    )
    second, _ = multi_head_attention.forward(
        x[:, 4:], parameters, visible=seen[:, :, 4:], past=saved.present, **options
    )
    assert_agrees(np.concatenate([first, second], axis=1), y)


@FEWER
@given(configs(), seeds, st.lists(st.integers(1, 2), min_size=1, max_size=3))
def test_a_model_sees_through_one_mask_in_forward_tiles_and_decoding(config, seed, chunks):
    """Logits and gradients are the same, and so are rows of the mask that are empty."""
    config = GPTConfig(**{**config.to_dict(), "context_length": sum(chunks)})
    model, in_idx = model_of(config, seed), ids_of(config, seed)
    T = in_idx.shape[1]
    seen = np.tril(np.random.default_rng(seed).random((2, 1, T, T)) < 0.5)
    masks = model.draw_dropout_masks(TorchGenerator(seed), *in_idx.shape)
    d_logits = np.random.default_rng(seed).standard_normal((2, T, config.vocab_size))
    results = {}
    for model.attention in ("math", "flash"):
        full, _ = model.forward(in_idx, visible=seen)
        past, end = None, 0
        for tokens in chunks:
            start, end = end, end + tokens
            logits, past = model.decode(in_idx[:, start:end], past, visible=seen[:, :, start:end, :end])
            assert_agrees(logits, full[:, end - 1])
        dropped, saved = model.forward(in_idx, visible=seen, masks=masks)
        results[model.attention] = full, dropped, model.backward(d_logits, saved)
    for ours, expected in zip(results["flash"][:2], results["math"][:2], strict=True):
        assert_agrees(ours, expected)
    assert_same_gradients(results["flash"][2], results["math"][2])


def test_a_model_does_not_depend_on_what_it_may_not_see():
    """This is exact, and no gradient flows there. A token sees itself and every second other token, even later ones."""
    config = GPTConfig(11, 6, 12, 3, n_layers=2, drop_rate=0.0, qkv_bias=True)
    model = model_of(config, 0)
    even = np.arange(6) % 2 == 0
    seen = np.broadcast_to(even == even[:, np.newaxis], (2, 1, 6, 6))
    in_idx = np.array([[0, 1, 2, 3, 4, 5], [4, 7, 2, 9, 0, 1]])
    changed = np.where(even, in_idx, in_idx + 1)
    d_logits = np.where(even[:, np.newaxis], np.random.default_rng(0).standard_normal((2, 6, 11)), 0)
    for model.attention in ("math", "flash"):
        logits, saved = model.forward(in_idx, visible=seen)
        of_changed, saved_of_changed = model.forward(changed, visible=seen)
        assert np.array_equal(logits[:, even], of_changed[:, even])
        assert not np.array_equal(logits[:, ~even], of_changed[:, ~even])
        causal, _ = model.forward(in_idx)
        assert not np.array_equal(logits[:, 0], causal[:, 0]), "the first token sees later ones"
        told = {}
        grads = model.backward(d_logits, saved, watch=told.__setitem__)
        assert not told["d_tok_emb"][:, ~even].any()
        assert told["d_tok_emb"][:, even].any()
        of_changed = model.backward(d_logits, saved_of_changed)
        assert_equal(
            {name: grads[name] for name in grads if name != "tok_emb.weight"},
            {name: of_changed[name] for name in grads if name != "tok_emb.weight"},
        )


@FEWER
@given(configs(drop_rate=0.0), seeds, st.integers(1, 4))
def test_padding_on_the_left_changes_nothing(config, seed, padding):
    """Padded sequences, with positions from their own start, have the logits and gradients of the bare sequences."""
    config = GPTConfig(**{**config.to_dict(), "context_length": config.context_length + padding})
    model = model_of(config, seed)
    T = config.context_length
    bare = ids_of(config, seed, tokens=T - padding)
    padded = np.concatenate([ids_of(config, seed + 1, tokens=padding), bare], axis=1)
    positions = np.tile(np.maximum(np.arange(T) - padding, 0), (2, 1))
    seen = causal_from(np.array([padding, padding]), T, T)
    d_logits = np.random.default_rng(seed).standard_normal((2, T, config.vocab_size))
    d_logits[:, :padding] = 0
    for model.attention in ("math", "flash"):
        logits, saved = model.forward(padded, positions=positions, visible=seen)
        expected, expected_saved = model.forward(bare)
        assert_agrees(logits[:, padding:], expected)
        assert_same_gradients(
            model.backward(d_logits, saved), model.backward(d_logits[:, padding:], expected_saved)
        )
