"""What holds for the mathematics at all values: causality, caching, batches, sums that are zero, purity, dtypes.

What is exact is tested bit for bit. The rest agrees in float64 to FLOAT64_NORMWISE, or, for gradients, to gradcheck's
threshold. If the exact value is zero, the error is relative to the terms that cancel.
"""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from numpygpt import parallel
from numpygpt.checks import own_gradients
from numpygpt.checks.record import Call
from numpygpt.layers.key_value_cache import KeyValueCache
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.ops import attention, cross_entropy, flash_attention, layer_norm
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.training.adamw import AdamW
from numpygpt.training.clipping import clip_grad_norm
from numpygpt.training.step import loss_and_grads_of
from parity_tests.small_models import (
    FEWER,
    Followed,
    arrays_in,
    assert_agrees,
    assert_equal,
    assert_same_gradients,
    configs,
    copies,
    followed,
    ids_of,
    model_of,
    norm,
)
from parity_tests.strategies import seeds
from parity_tests.tolerances import FLOAT64_NORMWISE


def cases(seed=0):
    """The cases of gradcheck, which has every operation and layer."""
    return own_gradients.cases(np.random.default_rng(seed))


each_case = pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)


def run(case):
    """The output of a case, what it saves, and its gradients for a random cotangent."""
    output, saved = case.operation.forward(*case.arguments.values(), **case.options)
    d_output = np.random.default_rng(1).standard_normal(output.shape).astype(output.dtype)
    return output, saved, d_output, case.operation.backward(d_output[()], saved)


# Causality, bit for bit


@pytest.mark.long_run
@FEWER
@given(configs(), seeds, st.data())
def test_logits_do_not_depend_on_later_tokens(config, seed, data):
    """This holds also if scores reach ±1e5, at which only -inf keeps the future out."""
    model = model_of(config, seed, data.draw(st.sampled_from([np.float32, np.float64])))
    T = config.context_length
    last = data.draw(st.integers(0, T - 2))
    in_idx = ids_of(config, seed)
    changed = in_idx.copy()
    changed[:, last + 1 :] = (changed[:, last + 1 :] + 1) % config.vocab_size
    size = data.draw(st.sampled_from([1, 1e5]))
    for block in model.parameters.trf_blocks:
        block.att.W_query.weight[...] *= size
    scores = {}
    masks = model.draw_dropout_masks(np.random.default_rng(seed), *in_idx.shape)
    for masked in (None, masks):
        logits, _ = model.forward(in_idx, masks=masked, watch=scores.__setitem__)
        logits_changed, _ = model.forward(changed, masks=masked)
        assert np.array_equal(logits[:, : last + 1], logits_changed[:, : last + 1])
    assert np.array_equal(model(in_idx)[:, : last + 1], model(changed)[:, : last + 1])
    seen = np.concatenate([s[np.isfinite(s)] for name, s in scores.items() if name.endswith("attn_scores")])
    assume(np.abs(seen).max() > size / 10)


@pytest.mark.long_run
@pytest.mark.parametrize(
    ("operation", "options"),
    [(attention, {}), (flash_attention, {"tile": 2}), (flash_attention, {})],
    ids=["attention", "flash_attention, tiles of 2", "flash_attention"],
)
@given(seeds, st.integers(1, 5), st.sampled_from([1.0, 1e5]), st.sampled_from([np.float32, np.float64]))
def test_attention_reads_and_writes_no_later_position(operation, options, seed, last, size, dtype):
    """Keys and values after a position do not reach its context; its gradient does not reach them."""
    rng = np.random.default_rng(seed)
    queries, keys, values = rng.standard_normal((3, 2, 2, 6, 4)).astype(dtype)
    queries *= dtype(size)
    context, saved = operation.forward(queries, keys, values, **options)
    later_keys, later_values = keys.copy(), values.copy()
    later_keys[:, :, last:] = rng.standard_normal((2, 2, 6 - last, 4)) * size
    later_values[:, :, last:] = rng.standard_normal((2, 2, 6 - last, 4)) * size
    changed, _ = operation.forward(queries, later_keys, later_values, **options)
    assert np.array_equal(context[:, :, :last], changed[:, :, :last])
    if size == 1:  # at 1e5 each query reads one key alone, which need not be a changed one
        assert not np.array_equal(context[:, :, last:], changed[:, :, last:])
    d_context = rng.standard_normal(context.shape).astype(dtype)
    d_context[:, :, last:] = 0
    for gradient in operation.backward(d_context, saved):
        assert not gradient[:, :, last:].any()


@FEWER
@given(configs(), seeds, st.data())
def test_the_loss_of_a_token_has_no_gradient_at_later_ones(config, seed, data):
    model, in_idx = model_of(config, seed), ids_of(config, seed)
    last = data.draw(st.integers(0, config.context_length - 2))
    logits, saved = model.forward(in_idx)
    d_logits = np.random.default_rng(seed).standard_normal(logits.shape)
    d_logits[:, last + 1 :] = 0
    seen = {}
    model.backward(d_logits, saved, watch=seen.__setitem__)
    for name in ("d_tok_emb", "d_trf_blocks.0.norm1", "d_trf_blocks.0"):
        assert not seen[name][:, last + 1 :].any()
        assert seen[name][:, : last + 1].any()


# Decoding, batches


@FEWER
@given(configs(drop_rate=0.0), seeds, st.lists(st.integers(1, 3), min_size=2, max_size=4))
def test_cached_decoding_equals_the_full_forward(config, seed, chunks):
    """The chunks have any lengths, and a past can be continued twice."""
    config = replace(config, context_length=sum(chunks))
    model, in_idx = model_of(config, seed), ids_of(config, seed)
    full = model(in_idx)
    past, end = None, 0
    for tokens in chunks:
        start, end = end, end + tokens
        before = [np.copy(array) for array in arrays_in(past)]
        logits, present = model.decode(in_idx[:, start:end], past)
        assert_agrees(logits, full[:, end - 1])
        after = [np.copy(array) for array in arrays_in(present)]
        model.decode(in_idx[:, :1])
        model.decode((in_idx[:, start:end] + 1) % config.vocab_size, past)
        again, _ = model.decode(in_idx[:, start:end], past)
        assert np.array_equal(logits, again)
        assert all(map(np.array_equal, arrays_in(past), before))
        assert all(map(np.array_equal, arrays_in(present), after))
        past = present
        for cache in past:
            assert cache.keys.shape == cache.values.shape == (2, config.n_heads, end, config.head_dim)


def test_a_cache_is_allocated_once_and_copied_only_where_a_past_is_gone_on_from_twice():
    config = GPTConfig(11, 5, 6, 2, n_layers=2, drop_rate=0.0, qkv_bias=False)
    model, in_idx = model_of(config, 0), ids_of(config, 0)
    _, past = model.decode(in_idx[:, :2])
    _, present = model.decode(in_idx[:, 2:3], past)
    _, other = model.decode(in_idx[:, 3:4], past)
    for first, longer, copied in zip(past, present, other, strict=True):
        assert np.shares_memory(first.keys, longer.keys)
        assert np.shares_memory(first.values, longer.values)
        assert not np.shares_memory(copied.buffer.keys_values, first.buffer.keys_values)


def test_a_cache_without_room_gets_more():
    keys, values = np.random.default_rng(0).standard_normal((2, 1, 2, 5, 3))
    cache = KeyValueCache.empty(1, 2, 2, 3, keys.dtype).extended(keys[:, :, :2], values[:, :, :2])
    longer = cache.extended(keys[:, :, 2:], values[:, :, 2:])
    assert_equal({"keys": longer.keys, "values": longer.values}, {"keys": keys, "values": values})
    assert cache.length == 2


# Less memory, the same gradients


@pytest.mark.parametrize("attention", ["math", "flash"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@FEWER
@given(configs(), seeds)
def test_recomputed_activations_give_the_same_bits(attention, dtype, config, seed):
    model, in_idx = model_of(config, seed, dtype), ids_of(config, seed)
    model.attention = attention
    loss, grads = model.loss_and_grads(in_idx, in_idx, rng=TorchGenerator(seed))
    model.checkpoint_activations = True
    again, same = model.loss_and_grads(in_idx, in_idx, rng=TorchGenerator(seed))
    assert loss == again
    assert_equal(same, grads)


def test_a_watch_is_told_recomputed_activations_once():
    config = GPTConfig(11, 5, 6, 2, n_layers=2, drop_rate=0.3, qkv_bias=True)
    model, in_idx = model_of(config, 0), ids_of(config, 0)
    told = {False: [], True: []}
    for model.checkpoint_activations, names in told.items():

        def watch(name, _, names=names):
            names.append(name)

        model.loss_and_grads(in_idx, in_idx, rng=TorchGenerator(0), watch=watch)
    assert told[True] == told[False]


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_watched_or_not_and_freed_on_the_way_or_not_the_gradients_are_the_same_bits(checkpoint_activations):
    """If nobody watches, the logits' gradient takes their place, and what a block saved is dropped once it is used."""
    config = GPTConfig(11, 5, 6, 2, n_layers=2, drop_rate=0.3, qkv_bias=True)
    model, in_idx = model_of(config, 0), ids_of(config, 0)
    model.checkpoint_activations = checkpoint_activations
    _, unwatched = model.loss_and_grads(in_idx, in_idx, rng=TorchGenerator(0))
    _, watched = model.loss_and_grads(in_idx, in_idx, rng=TorchGenerator(0), watch=lambda *_: None)
    assert_equal(watched, unwatched)
    logits, saved = model.forward(in_idx)
    kept, freed = model.backward(logits, saved), model.backward(logits, saved, consume=True)
    assert_equal(freed, kept)
    assert not saved.body.trf_blocks


@given(configs(drop_rate=0.0), seeds)
def test_flash_attention_reads_no_later_token(config, seed):
    model, in_idx = model_of(config, seed), ids_of(config, seed)
    model.attention = "flash"
    changed = in_idx.copy()
    changed[:, -1] = (changed[:, -1] + 1) % config.vocab_size
    assert np.array_equal(model(in_idx)[:, :-1], model(changed)[:, :-1])


@FEWER
@given(configs(), seeds)
def test_flash_attention_gives_the_books_loss_and_gradients(config, seed):
    """They agree except for rounding: if a query reads only one key, the row sums of its gradient are not exactly 0."""
    model, in_idx = model_of(config, seed), ids_of(config, seed)
    expected_loss, expected = model.loss_and_grads(in_idx, in_idx, rng=TorchGenerator(seed))
    model.attention = "flash"
    loss, grads = model.loss_and_grads(in_idx, in_idx, rng=TorchGenerator(seed))
    assert_agrees(loss, expected_loss)
    assert_same_gradients(grads, expected)


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_flash_attention_in_several_tiles_gives_the_models_loss_and_gradients(checkpoint_activations):
    """There are more tokens than in a tile, strided heads as the model has them, and dropout. It is causal too."""
    config = GPTConfig(11, flash_attention.TILE + 44, 6, 2, n_layers=2, drop_rate=0.3, qkv_bias=False)
    model, in_idx = model_of(config, 0), ids_of(config, 0)
    expected_loss, expected = model.loss_and_grads(in_idx, in_idx, rng=TorchGenerator(0))
    model.attention, model.checkpoint_activations = "flash", checkpoint_activations
    loss, grads = model.loss_and_grads(in_idx, in_idx, rng=TorchGenerator(0))
    assert_agrees(loss, expected_loss)
    for name, gradient in expected.items():
        assert_agrees(grads[name], gradient)
    changed = in_idx.copy()
    changed[:, -20:] = (changed[:, -20:] + 1) % config.vocab_size
    assert np.array_equal(model(in_idx)[:, :-20], model(changed)[:, :-20])


def most_memory(function, *arguments, **options):
    """What the function returns, and the most bytes that it held while it ran."""
    tracemalloc.start()
    try:
        return function(*arguments, **options), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_twice_the_tokens_take_flash_attention_twice_the_memory_and_attention_four_times():
    peaks = {}
    for operation, options in ((attention, {}), (flash_attention, {"tile": 16})):
        for tokens in (256, 512):
            (context, saved), forward = most_memory(operation.forward, *np.ones((3, 1, 2, tokens, 4)), **options)
            _, backward = most_memory(operation.backward, context, saved)
            peaks[operation, tokens] = np.array([forward, backward])
    assert (peaks[flash_attention, 512] < 3 * peaks[flash_attention, 256]).all()
    assert (peaks[attention, 512] > 3 * peaks[attention, 256]).all()


@FEWER
@given(configs(drop_rate=0.0), seeds)
def test_a_batch_is_its_sequences(config, seed):
    """Each row has the logits that it has alone, and the loss's gradient is the mean of the rows' gradients."""
    model, in_idx, targets = model_of(config, seed), ids_of(config, seed, 3), ids_of(config, seed + 1, 3)
    logits = model(in_idx)
    loss, grads = model.loss_and_grads(in_idx, targets)
    grads = copies(grads)
    rows = [slice(row, row + 1) for row in range(3)]
    for row in rows:
        assert_agrees(model(in_idx[row]), logits[row])
    alone = [model.loss_and_grads(in_idx[row], targets[row]) for row in rows]
    assert math.isclose(sum(loss for loss, _ in alone) / 3, loss, rel_tol=FLOAT64_NORMWISE)
    assert_same_gradients({name: sum(row[name] for _, row in alone) / 3 for name in grads}, grads)


# Sums that are zero


@pytest.mark.long_run
@given(seeds, st.integers(1, 6), st.integers(1, 20), st.floats(-3, 3))
@example(seed=0, rows=3, vocab=2, exponent=3.0)
def test_rows_of_the_softmax_losss_gradient_sum_to_zero(seed, rows, vocab, exponent):
    """The sum is judged relative to 1 / n: a row is (p - onehot) / n, the difference of two rows that sum to 1 / n."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, vocab)) * 10**exponent
    targets = rng.integers(0, vocab, rows)
    targets[rng.random(rows) < 0.3] = IGNORE_INDEX
    _, saved = cross_entropy.forward(logits, targets)
    d_logits = cross_entropy.backward(1.0, saved).logits
    counted = targets != IGNORE_INDEX
    assert not d_logits[~counted].any()
    assert (np.abs(d_logits[counted].sum(axis=-1)) <= FLOAT64_NORMWISE / max(1, counted.sum())).all()


@pytest.mark.long_run
@given(seeds, st.integers(1, 40), st.floats(-2, 2), st.floats(-2, 2), st.sampled_from([1e-12, 1e-5, 0.5]))
def test_layer_norms_d_x_is_orthogonal_to_1_and_but_for_eps_to_the_normalized_x(seed, width, scale, shift, eps):
    """<d_x, 1> = 0, and <d_x, z> = eps r³ <d_z, z>, which goes to 0 with eps; errors are relative to what cancels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, width)) * 10**scale + 10**shift
    g, b, d_y = rng.standard_normal(width), rng.standard_normal(width), rng.standard_normal((3, width))
    _, saved = layer_norm.forward(x, g, b, eps=eps)
    d_x = layer_norm.backward(d_y, saved).x
    for row in range(3):
        z, r, d_z = saved.normalized[row], saved.inv_std[row, 0], d_y[row] * g
        limit = FLOAT64_NORMWISE * r * norm(d_z) * math.sqrt(width)
        assert abs(d_x[row].sum()) <= limit
        assert abs((d_x[row] * z).sum() - eps * r**3 * (d_z * z).sum()) <= limit


@FEWER
@given(configs(drop_rate=0.0, tie_weights=False), seeds, st.data())
def test_unused_ids_and_positions_have_no_gradient(config, seed, data):
    tokens = data.draw(st.integers(1, config.context_length))
    model, in_idx = model_of(config, seed), ids_of(config, seed, tokens=tokens)
    in_idx %= max(1, config.vocab_size // 2)
    logits, saved = model.forward(in_idx)
    grads = model.backward(np.random.default_rng(seed).standard_normal(logits.shape), saved)
    used = np.isin(np.arange(config.vocab_size), in_idx)
    assert np.array_equal(grads["tok_emb.weight"].any(axis=1), used)
    assert np.array_equal(grads["pos_emb.weight"].any(axis=1), np.arange(config.context_length) < tokens)


@FEWER
@given(configs(qkv_bias=True), seeds)
def test_the_keys_bias_has_no_gradient(config, seed):
    """It adds the same to all scores of a query. The error is relative to the keys' gradients, whose sum it is."""
    model, in_idx = model_of(config, seed), ids_of(config, seed)
    seen = {}
    _, grads = model.loss_and_grads(in_idx, ids_of(config, seed + 1), watch=seen.__setitem__)
    for i in range(config.n_layers):
        terms = seen[f"d_trf_blocks.{i}.att.keys"]
        assert norm(grads[f"trf_blocks.{i}.att.W_key.bias"]) <= FLOAT64_NORMWISE * np.abs(terms).sum()
        assert grads[f"trf_blocks.{i}.att.W_query.bias"].any()


# Micro-batches, tied weights


@FEWER
@given(configs(drop_rate=0.0), seeds, st.data())
def test_micro_batches_are_the_full_batch(config, seed, data):
    """The batch is cut anywhere, and any number of targets is ignored in each, perhaps all of one."""
    B = 5
    model, in_idx, targets = model_of(config, seed), ids_of(config, seed, B), ids_of(config, seed + 1, B)
    cuts = sorted(data.draw(st.sets(st.integers(1, B - 1))))
    targets[np.random.default_rng(seed).random(targets.shape) < 0.4] = IGNORE_INDEX
    if data.draw(st.booleans()) and cuts:
        targets[: cuts[0]] = IGNORE_INDEX
    expected_loss, expected = model.loss_and_grads(in_idx, targets)
    expected = copies(expected)
    parts = zip(np.split(in_idx, cuts), np.split(targets, cuts), strict=True)
    loss, grads = loss_and_grads_of(model, list(parts))
    assert math.isclose(loss, expected_loss, rel_tol=FLOAT64_NORMWISE)
    assert_same_gradients(grads, expected)


@FEWER
@given(configs(tie_weights=True), seeds)
def test_the_tied_gradient_is_the_sum_of_both_paths(config, seed):
    tied = model_of(config, seed)
    weights = tied.state_dict()
    untied = GPTModel.from_state_dict(replace(config, tie_weights=False), weights)
    inputs, targets = ids_of(config, seed), ids_of(config, seed + 1)
    loss, grads = tied.loss_and_grads(inputs, targets, rng=TorchGenerator(seed))
    untied_loss, expected = untied.loss_and_grads(inputs, targets, rng=TorchGenerator(seed))
    assert loss == untied_loss
    expected = dict(expected)
    expected["tok_emb.weight"] = expected["tok_emb.weight"] + expected.pop("out_head.weight")
    assert_equal(grads, expected)


# Purity


@each_case
def test_an_operation_changes_nothing_and_remembers_nothing(case):
    """Everything that it is given is read-only. A second forward and a second backward give the same, bit for bit."""
    for array in arrays_in((*case.arguments.values(), *case.options.values())):
        array.setflags(write=False)
    output, saved, d_output, gradients = run(case)
    for array in (*arrays_in(output), d_output, *arrays_in(saved)):
        if isinstance(array, np.ndarray):
            array.setflags(write=False)
    run(next(c for c in cases(seed=1) if c.name == case.name))
    assert all(map(np.array_equal, arrays_in(gradients), arrays_in(case.operation.backward(d_output[()], saved))))
    again, saved_again, _, gradients_again = run(case)
    for first, second in ((output, again), (saved, saved_again), (gradients, gradients_again)):
        assert all(map(np.array_equal, arrays_in(first), arrays_in(second)))


@FEWER
@given(configs(drop_rate=0.3), seeds)
def test_a_model_changes_nothing_and_remembers_nothing(config, seed):
    model, in_idx, targets = model_of(config, seed), ids_of(config, seed), ids_of(config, seed + 1)
    masks = model.draw_dropout_masks(np.random.default_rng(seed), *in_idx.shape)
    for array in (in_idx, targets, *arrays_in(masks), *arrays_in(model.parameters)):
        array.setflags(write=False)
    seen = {}
    logits, saved = model.forward(in_idx, masks=masks, watch=seen.__setitem__)
    assert np.array_equal(logits, seen["logits"])
    d_logits = np.random.default_rng(seed).standard_normal(logits.shape)
    for array in (logits, d_logits, *arrays_in(saved)):
        array.setflags(write=False)
    first = copies(model.backward(d_logits, saved))
    loss, grads = model.loss_and_grads(in_idx, targets, rng=TorchGenerator(seed))
    grads = copies(grads)
    assert_equal(model.backward(d_logits, saved), first)
    assert np.array_equal(model.forward(in_idx, masks=masks)[0], logits)
    loss_again, grads_again = model.loss_and_grads(in_idx, targets, rng=TorchGenerator(seed))
    assert loss == loss_again
    assert_equal(grads_again, grads)


@FEWER
@given(configs(drop_rate=0.3), seeds)
def test_there_is_no_dropout_without_a_generator(config, seed):
    """This is so before a training step and after it, and it gives what a rate of 0 gives."""
    model, in_idx, targets = model_of(config, seed), ids_of(config, seed), ids_of(config, seed + 1)
    without = GPTModel.from_state_dict(replace(config, drop_rate=0.0), model.named_parameters())
    expected_loss, expected = without.loss_and_grads(in_idx, targets)
    for _ in range(2):
        loss, grads = model.loss_and_grads(in_idx, targets)
        assert loss == expected_loss
        assert_equal(grads, expected)
        assert np.array_equal(model(in_idx), without(in_idx))
        dropped, _ = model.loss_and_grads(in_idx, targets, rng=TorchGenerator(seed))
        assert dropped != expected_loss
    rng = TorchGenerator(seed)
    assert without.loss_and_grads(in_idx, targets, rng=rng)[0] == expected_loss
    assert rng.get_state().position == TorchGenerator(seed).get_state().position, "a rate of 0 draws nothing"


# Dtypes


def in_dtype(case, dtype):
    """The case with its arrays of this dtype, as the nodes hold them: stacked ones, and a table that is fixed."""

    def cast(array):
        return array.astype(dtype) if np.issubdtype(array.dtype, np.inexact) else array

    return case._replace(**Call(case.arguments, case.options).changed(cast)._asdict())


def dtypes_of(tree):
    return {array.dtype for array in arrays_in(tree) if np.issubdtype(array.dtype, np.inexact)}


@each_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_an_operation_keeps_the_dtype(case, dtype):
    converted = in_dtype(case, dtype)
    for part in run(converted):
        assert dtypes_of(part) <= {np.dtype(dtype)}
    assert dtypes_of(run(converted)[3]) == {np.dtype(dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tie_weights", [False, True])
def test_a_training_step_keeps_the_dtype(dtype, tie_weights):
    config = GPTConfig(11, 5, 6, 2, n_layers=2, drop_rate=0.3, qkv_bias=True, tie_weights=tie_weights)
    model, in_idx = model_of(config, 0, dtype), ids_of(config, 0)
    seen = {}
    loss, grads = model.loss_and_grads(in_idx, in_idx, rng=TorchGenerator(0), watch=seen.__setitem__)
    _, saved = model.forward(in_idx, masks=model.draw_dropout_masks(TorchGenerator(0), *in_idx.shape))
    _, accumulated = loss_and_grads_of(model, [(in_idx, in_idx), (in_idx, in_idx)], rng=TorchGenerator(0))
    clip_grad_norm(accumulated, 1e-3)
    optimizer = AdamW(model)
    optimizer.step(accumulated)
    moments = (*optimizer.exp_avg.values(), *optimizer.exp_avg_sq.values())
    logits, past = model.decode(in_idx)
    for arrays in (
        (loss, *grads.values()), tuple(seen.values()), saved, tuple(accumulated.values()), moments,
        tuple(model.state_dict().values()), (logits, past), model(in_idx),
    ):  # fmt: skip
        assert dtypes_of(arrays) == {np.dtype(dtype)}
    unseen = {name.removeprefix("d_") for name in seen if name.startswith("d_")} - seen.keys()
    assert not unseen, "each gradient is of an activation that was watched"


@each_case
def test_nothing_inside_an_operation_is_wider_than_float32(case):
    """Nothing that is computed from its arguments or from what it saved is wider, and no array that it meets is."""
    case = in_dtype(case, np.float32)
    output, saved = case.operation.forward(*followed(tuple(case.arguments.values())), **case.options)
    forward = list(Followed.calls)
    d_output = np.random.default_rng(1).standard_normal(output.shape).astype(np.float32)
    d_output, saved = followed((d_output, saved))
    case.operation.backward(d_output[()], saved)
    for function, operands, result in (*forward, *Followed.calls):
        assert dtypes_of((*operands, result)) <= {np.dtype(np.float32)}, function
    assert forward or case.name.startswith(("embedding", "dropout"))


# Threads


@each_case
def test_an_operation_gives_the_same_on_any_number_of_threads(case, monkeypatch):
    """It gives the same bits, and in many blocks the same as in one, except for the order of sums."""
    output, _, _, gradients = run(case)
    in_one_block = [*arrays_in(output), *arrays_in(gradients)]
    monkeypatch.setattr(parallel, "BLOCK_BYTES", 48)
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(parallel, "number_of_threads", lambda threads=threads: threads)
        output, saved, _, gradients = run(case)
        results.append([np.copy(array) for part in (output, saved, gradients) for array in arrays_in(part)])
        for ours, expected in zip([*arrays_in(output), *arrays_in(gradients)], in_one_block, strict=True):
            assert_agrees(ours, expected)
    for other in results[1:]:
        assert all(map(np.array_equal, results[0], other))


def test_a_training_step_gives_the_same_on_any_number_of_threads(monkeypatch):
    config = GPTConfig(11, 5, 6, 2, n_layers=1, drop_rate=0.3, qkv_bias=True)
    monkeypatch.setattr(parallel, "BLOCK_BYTES", 48)
    results = []
    for threads in (1, 2):
        monkeypatch.setattr(parallel, "number_of_threads", lambda threads=threads: threads)
        model, in_idx = model_of(config, 0, np.float32), ids_of(config, 0)
        optimizer = AdamW(model)
        for _ in range(2):
            loss, grads = model.loss_and_grads(in_idx, in_idx, rng=TorchGenerator(0))
            norm_before = clip_grad_norm(grads, 0.1)
            optimizer.step(grads)
        results.append({"loss": loss, "norm": np.array(norm_before), **grads, **model.state_dict()})
    assert_equal(results[1], results[0])
