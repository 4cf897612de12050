"""A model can be copied and pickled, and if a docstring says that something is copied or shared, it is."""

import copy
import pickle
import re
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from numpygpt.data.loader import DataLoader
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.data.windows import GPTDatasetV1
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import read_checkpoint, write_checkpoint
from numpygpt.layers import parameters as p
from numpygpt.layers.key_value_cache import KeyValueCache
from numpygpt.layers.multi_head_attention import merge_heads, split_heads
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_of as saved_model
from numpygpt.model.saving import model_section
from numpygpt.ops import cross_entropy, linear
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.training.adamw import AdamW
from numpygpt.training.clipping import clip_grad_norm
from numpygpt.tree import everything, mapped, named, with_children
from parity_tests.small_models import assert_equal, copies, model_of
from torchgpt.bridge import to_numpy, to_torch

LEARNED = GPTConfig(11, 6, 12, 3, n_layers=2, drop_rate=0.25, qkv_bias=True)
CONFIGS = {
    "learned": LEARNED,
    "tied": replace(LEARNED, tie_weights=True),
    "sinusoidal, no biases": replace(
        LEARNED, position="sinusoidal", qkv_bias=False, bias=False, activation="gelu_erf", norm_eps=0.1
    ),
}
INPUTS, TARGETS = np.random.default_rng(0).integers(0, 11, (2, 2, 5))
MADE_AGAIN = {"deepcopy": copy.deepcopy, "pickle": lambda whole: pickle.loads(pickle.dumps(whole))}

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))


def memory_of(model):
    """Every array that the model computes with, including the table of sinusoids."""
    table = model.parameters.pos_emb
    return [*model.state_dict().values(), *([table.table] if isinstance(table, p.Sinusoids) else [])]


def share(ours, theirs):
    """Whether any array of one shares memory with any array of the other."""
    return any(np.shares_memory(one, other) for one in ours for other in theirs)


def all_shared(ours, theirs):
    """Whether each array shares memory with the one of the same name."""
    assert ours.keys() == theirs.keys()
    return all(np.shares_memory(ours[name], theirs[name]) for name in ours)


# Copies of a model


def assert_is_made_of_the_same(other, model):
    """The weights of queries, keys and values are still in one array, and tied weights are still one array."""
    assert other.config == model.config
    assert other.dtype == model.dtype
    assert (other.attention, other.checkpoint_activations) == (model.attention, model.checkpoint_activations)
    assert_equal(other.state_dict(), model.state_dict())
    for block in other.parameters.trf_blocks:
        assert isinstance(block.att, p.StackedAttention)
        for one_array, name in zip(block.att.qkv, p.Linear._fields, strict=True):
            for part in (block.att.W_query, block.att.W_key, block.att.W_value):
                assert one_array is getattr(part, name) is None or np.shares_memory(getattr(part, name), one_array)
    weights = other.state_dict()
    assert (weights["out_head.weight"] is weights["tok_emb.weight"]) == model.config.tie_weights


def assert_computes_the_same(other, model):
    """Both compute the same, bit for bit."""
    assert_is_made_of_the_same(other, model)
    assert np.array_equal(other(INPUTS), model(INPUTS))
    loss, grads = other.loss_and_grads(INPUTS, TARGETS, rng=TorchGenerator(1))
    expected_loss, expected = model.loss_and_grads(INPUTS, TARGETS, rng=TorchGenerator(1))
    assert loss == expected_loss
    assert_equal(grads, expected)


@each_config
def test_a_pickled_model_is_the_same_model(config):
    for dtype in (np.float32, np.float64):
        model = GPTModel(config, 1, dtype, attention="flash", checkpoint_activations=True)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            other = pickle.loads(pickle.dumps(model, protocol))
            assert_is_made_of_the_same(other, model)
        assert_computes_the_same(other, model)


@each_config
def test_a_deep_copy_is_the_same_model_and_shares_no_memory(config):
    model = model_of(config, 1, np.float32)
    other = copy.deepcopy(model)
    assert_computes_the_same(other, model)
    assert not share(memory_of(other), memory_of(model))
    before = copies(model.state_dict())
    optimizer = AdamW(other, lr=0.1)
    for _ in range(2):
        optimizer.step(other.loss_and_grads(INPUTS, TARGETS)[1])
    assert_equal(model.state_dict(), before)
    assert not any(np.array_equal(array, before[name]) for name, array in other.state_dict().items())


@each_config
def test_a_shallow_copy_has_the_same_parameters_and_options_of_its_own(config):
    model = model_of(config, 1)
    other = copy.copy(model)
    assert_computes_the_same(other, model)
    assert all_shared(other.state_dict(), model.state_dict())
    other.attention, other.checkpoint_activations = "flash", True
    assert (model.attention, model.checkpoint_activations) == ("math", False)


def test_a_copy_of_a_copy_of_a_pickled_model_trains_as_the_first():
    model = model_of(CONFIGS["tied"], 1)
    other = copy.deepcopy(copy.copy(pickle.loads(pickle.dumps(model))))
    for trained in (model, other):
        optimizer = AdamW(trained)
        for step in range(3):
            optimizer.step(trained.loss_and_grads(INPUTS, TARGETS, rng=TorchGenerator(step))[1])
    assert_equal(other.state_dict(), model.state_dict())


def test_what_decoding_and_training_hold_can_be_copied_too():
    model = model_of(LEARNED, 1)
    _, past = model.decode(INPUTS[:, :3])
    optimizer = AdamW(model)
    optimizer.step(model.loss_and_grads(INPUTS, TARGETS)[1])
    rng = TorchGenerator(5)
    rng.random(3)
    for made_again in MADE_AGAIN.values():
        other, other_past, other_optimizer, other_rng = map(made_again, (model, past, optimizer, rng))
        assert np.array_equal(
            other.decode(INPUTS[:, 3:4], other_past)[0], model.decode(INPUTS[:, 3:4], past)[0]
        )
        assert not share([cache.keys for cache in other_past], [cache.keys for cache in past])
        for arrays in ("parameters", "exp_avg", "exp_avg_sq"):
            ours, theirs = getattr(other_optimizer, arrays), getattr(optimizer, arrays)
            assert_equal(ours, theirs)
            assert not share(ours.values(), theirs.values())
        assert np.array_equal(other_rng.random(4), copy.deepcopy(rng).random(4))


@pytest.mark.parametrize("made_again", MADE_AGAIN.values(), ids=list(MADE_AGAIN))
@pytest.mark.parametrize("trained", [everything, lambda name: ".att.W_" in name], ids=["everything", "attention"])
def test_an_optimizer_copied_with_its_model_trains_the_copy(trained, made_again):
    """Queries', keys' and values' weights too, which are views of one array; in either order of the two."""
    model = model_of(CONFIGS["tied"], 1)
    optimizer = AdamW(model, lr=0.1, trained=trained)

    def step(model, optimizer):
        optimizer.step(model.loss_and_grads(INPUTS, TARGETS, trained=trained)[1])
        return copies(model.state_dict())

    step(model, optimizer)
    pairs = [made_again((model, optimizer)), made_again((optimizer, model))[::-1]]
    before = copies(model.state_dict())
    expected = step(model, optimizer)
    for other, others_optimizer in pairs:
        assert not share(memory_of(other), memory_of(model))
        assert_equal(other.state_dict(), before)
        assert_equal(step(other, others_optimizer), expected)
        assert all_shared(others_optimizer.parameters, {name: other.state_dict()[name] for name in optimizer.exp_avg})


@pytest.mark.parametrize("made_again", MADE_AGAIN.values(), ids=list(MADE_AGAIN))
def test_an_optimizer_copied_with_its_arrays_trains_the_copies(made_again):
    arrays = {"weight": drawn(3, 4), "reshaped": drawn(12).reshape(3, 4), "in columns": np.asfortranarray(drawn(3, 4))}
    gradients = {name: drawn(3, 4) for name in arrays}
    others, optimizer = made_again((arrays, AdamW(arrays)))
    optimizer.step(gradients)
    AdamW(arrays).step(gradients)
    assert_equal(others, arrays)


@pytest.mark.parametrize("made_again", MADE_AGAIN.values(), ids=list(MADE_AGAIN))
def test_an_optimizer_of_parts_of_arrays_is_not_copied(made_again):
    """Its copy would train arrays that belong to nobody."""
    parts = {name: array for name, array in model_of(LEARNED, 1).named_parameters().items() if "0.att.W_" in name}
    expected = re.escape(f"an optimizer of parts of other arrays cannot be copied or pickled: {list(parts)} would no")
    with pytest.raises(InputError, match=expected):
        made_again(AdamW(parts))


def test_an_optimizer_finds_its_models_parameters_by_name_and_says_if_they_have_changed():
    model = model_of(LEARNED, 1)
    optimizer = AdamW(model, lr=0.1)
    _, grads = model.loss_and_grads(INPUTS, TARGETS)
    model.parameters = copy.deepcopy(model.parameters)
    before = copies(model.state_dict())
    optimizer.step(grads)
    assert not any(np.array_equal(array, before[name]) for name, array in model.state_dict().items())
    for name, parameters in {
        "tok_emb.weight": mapped(lambda array: array.astype(np.float32), model.parameters),
        "trf_blocks.1.att.W_query.weight": model.parameters._replace(trf_blocks=model.parameters.trf_blocks[:1]),
        "pos_emb.weight": model.parameters._replace(pos_emb=p.Embedding(model.parameters.pos_emb.weight[1:])),
    }.items():
        model.parameters, whole = parameters, model.parameters
        with pytest.raises(InputError, match=rf"the model has changed since .* it has no \['{name}'.*\], or in "):
            optimizer.step(grads)
        model.parameters = whole


# Weights


@each_config
def test_weights_are_copied_into_a_model_and_shown_as_they_are(config):
    given = copies(model_of(config, 1).state_dict())
    weights = copies(given)
    from_weights, loaded = GPTModel.from_state_dict(config, weights), GPTModel(config, dtype=np.float64)
    loaded.load_state_dict(weights)
    for model in (from_weights, loaded):
        assert not share(model.state_dict().values(), weights.values())
        for array in model.state_dict().values():
            array[...] = 0
    assert_equal(weights, given)
    own = loaded.state_dict()
    assert all_shared(own, loaded.state_dict())
    assert all_shared(own, dict(named(loaded.parameters)))
    loaded.named_parameters()["tok_emb.weight"][...] = 3
    assert (loaded.parameters.tok_emb.weight == 3).all()
    parts = loaded.parameters.trf_blocks[0].att
    parts.W_key.weight[...] = 5
    assert (parts.qkv.weight[12:24] == 5).all(), "the three are views of one array"


def test_a_tree_made_of_another_keeps_the_arrays_it_is_not_asked_to_change():
    parameters = model_of(LEARNED, 1).parameters
    same = mapped(lambda array: array, parameters)
    assert all_shared(dict(named(same)), dict(named(parameters)))
    sinusoids = model_of(CONFIGS["sinusoidal, no biases"], 1).parameters.pos_emb
    assert with_children(sinusoids, {}) is sinusoids
    assert parameters.body.tok_emb is parameters.tok_emb


@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("copied", [False, True])
def test_the_bridge_shares_memory_unless_it_is_asked_to_copy(tie_weights, copied):
    model = model_of(replace(LEARNED, tie_weights=tie_weights), 1)
    twin = to_torch(model, copy=copied)
    back = to_numpy(twin, copy=copied)
    tensors = {name: tensor.numpy() for name, tensor in twin.state_dict().items()}
    for ours, theirs in ((model.state_dict(), tensors), (tensors, back.state_dict())):
        assert all_shared(ours, theirs) == (not copied)
        assert share(ours.values(), theirs.values()) == (not copied)
    kinds = {type(block.att) for block in back.parameters.trf_blocks}
    assert kinds == {p.StackedAttention if copied else p.MultiHeadAttention}


# Caches


def drawn(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def test_a_longer_cache_shares_the_room_of_the_shorter():
    empty = KeyValueCache.empty(2, 3, 6, 4, np.dtype(np.float64))
    first = empty.extended(*drawn(2, 2, 3, 2, 4))
    longer = first.extended(*drawn(2, 2, 3, 1, 4))
    assert np.shares_memory(empty.buffer.keys_values, longer.keys)
    assert np.shares_memory(first.keys, longer.keys)
    assert np.shares_memory(first.values, longer.values)
    assert not np.shares_memory(longer.keys, longer.values)
    assert np.shares_memory(first.keys, first.keys), "views of one buffer"
    full = longer.extended(*drawn(2, 2, 3, 3, 4))
    assert full.length == 6
    assert np.shares_memory(full.keys, empty.buffer.keys_values), "the last positions fit, too"
    assert empty.buffer.keys_values.shape == (2, 2, 3, 6, 4)


def test_a_cache_never_changes_and_is_itself_alone():
    """The arrays of two caches are not compared, and a cache may be the key of a dictionary."""
    cache = KeyValueCache.empty(2, 3, 6, 4, np.dtype(np.float64)).extended(*drawn(2, 2, 3, 2, 4))
    with pytest.raises(FrozenInstanceError):
        cache.length = 1
    assert len({cache, cache.first(cache.length), cache.buffer}) == 3


@pytest.mark.parametrize("why", ["gone on from twice", "no room", "a wider dtype"])
def test_a_cache_gets_an_array_of_its_own_where_it_has_to(why):
    new = drawn(2, 2, 3, 2, 4).astype(np.float32)
    first = KeyValueCache.empty(2, 3, 3 if why == "no room" else 6, 4, np.dtype(np.float32)).extended(*new)
    held = first.keys.copy(), first.values.copy()
    if why == "gone on from twice":
        taken = first.extended(*new)
        expected = taken.keys.copy(), taken.values.copy()
    longer = first.extended(*(-new if why != "a wider dtype" else new.astype(np.float64)))
    assert not np.shares_memory(longer.buffer.keys_values, first.buffer.keys_values)
    assert np.array_equal(longer.keys[:, :, :2], held[0])
    assert np.array_equal(longer.values[:, :, :2], held[1])
    assert np.array_equal((first.keys, first.values), held)
    if why == "gone on from twice":
        assert np.array_equal((taken.keys, taken.values), expected)
    assert longer.keys.dtype == (np.float64 if why == "a wider dtype" else np.float32)


def test_new_keys_and_the_rows_of_a_cache_are_copied():
    keys, values = drawn(2, 2, 3, 2, 4)
    cache = KeyValueCache.empty(2, 3, 6, 4, keys.dtype).extended(keys, values)
    assert not share([keys, values], [cache.keys, cache.values])
    for rows in ([0, 1], [1, 1, 0]):
        chosen = cache.rows(np.array(rows))
        assert not np.shares_memory(chosen.buffer.keys_values, cache.buffer.keys_values)
        assert np.array_equal(chosen.keys, keys[rows])
        assert np.array_equal(chosen.values, values[rows])
        assert chosen.buffer.keys_values.shape == (2, len(rows), 3, 6, 4), "room for as many positions as before"


def test_splitting_heads_is_a_view_and_merging_them_back_as_well():
    x = drawn(2, 5, 12)
    heads = split_heads(x, 3)
    assert np.shares_memory(heads, x)
    assert np.shares_memory(merge_heads(heads), x)
    other = np.ascontiguousarray(heads)
    assert not np.shares_memory(merge_heads(other), other)


# What operations save and overwrite


def test_a_linear_saves_its_factors_without_a_copy():
    x, weight = drawn(2, 3, 4), drawn(5, 4)
    _, saved = linear.forward(x, weight)
    assert saved.x is x
    assert saved.weight is weight


def test_the_gradient_of_logits_is_new_unless_it_may_take_their_place():
    logits, targets = drawn(5, 4), np.array([0, 3, 1, 1, -100])
    before = logits.copy()
    _, saved = cross_entropy.forward(logits, targets)
    assert saved.logits is logits
    expected = cross_entropy.backward(1.0, saved).logits
    assert not np.shares_memory(expected, logits)
    assert np.array_equal(logits, before)
    in_place = cross_entropy.backward(1.0, saved, out=logits).logits
    assert in_place is logits
    assert np.array_equal(in_place, expected)


# Training


def test_the_optimizer_trains_the_models_arrays_and_keeps_nothing_of_the_gradients():
    model = model_of(LEARNED, 1)
    optimizer = AdamW(model)
    assert all_shared(optimizer.parameters, model.named_parameters())
    _, grads = model.loss_and_grads(INPUTS, TARGETS)
    before = copies(grads)
    optimizer.step(grads)
    assert_equal(grads, before)
    for arrays in (optimizer.parameters, optimizer.exp_avg, optimizer.exp_avg_sq):
        assert not share(arrays.values(), grads.values())


def test_the_optimizers_state_is_its_own_and_is_copied_when_it_is_loaded():
    model = model_of(LEARNED, 1)
    optimizer, other = AdamW(model), AdamW(copy.deepcopy(model))
    optimizer.step(model.loss_and_grads(INPUTS, TARGETS)[1])
    state, section = optimizer.state_dict(), optimizer.section()
    for moments in ("exp_avg", "exp_avg_sq"):
        own = getattr(optimizer, moments)
        assert all_shared(state[moments], own)
        assert all_shared({name: section.arrays[f"{moments}.{name}"] for name in own}, own)
    other.load_state_dict(state)
    for moments in ("exp_avg", "exp_avg_sq"):
        loaded, given = getattr(other, moments), state[moments]
        assert_equal(loaded, given)
        assert not share(loaded.values(), given.values())
        for array in loaded.values():
            array[...] = 7
        assert not any((array == 7).any() for array in given.values())


def test_clipping_scales_the_gradients_in_place():
    grads = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]]), "strided": np.zeros((3, 4))[:, ::2]}
    arrays = list(grads.values())
    assert clip_grad_norm(grads, 1.0) == 5
    assert all(array is gradient for array, gradient in zip(arrays, grads.values(), strict=True))
    assert arrays[0][0] < 1


# Files and random states


def test_a_section_shows_the_models_arrays_and_a_checkpoint_reads_new_ones(tmp_path):
    model = model_of(LEARNED, 1)
    section = model_section(model)
    assert all_shared(dict(section.arrays), model.named_parameters())
    write_checkpoint(tmp_path, {"model": section})
    saved = read_checkpoint(tmp_path)
    first, second = saved.arrays("model"), saved.arrays("model")
    assert not share(first.values(), second.values())
    assert all(array.flags.writeable for array in first.values())
    values = saved.values("model")
    values["config"]["emb_dim"] = 0
    assert saved.values("model")["config"]["emb_dim"] == 12
    for array in first.values():
        array[...] = 0
    assert_equal(saved_model(saved).named_parameters(), second)


def test_a_generators_state_is_a_copy():
    rng = TorchGenerator(1)
    state, words = rng.get_state(), rng.to_torch_state()
    key, bits = state.key.copy(), words.copy()
    expected = rng.random(700)
    assert not np.array_equal(rng.get_state().key, key)
    assert np.array_equal(state.key, key)
    assert np.array_equal(words, bits)
    rng.set_state(state)
    state.key[...] = 0
    assert np.array_equal(rng.random(700), expected)


def test_windows_are_read_only_views_of_one_array_and_batches_are_new():
    dataset = GPTDatasetV1("abcdefghij", get_tokenizer("bytes"), max_length=4, stride=2)
    assert np.shares_memory(dataset.input_ids, dataset.target_ids)
    assert not dataset.input_ids.flags.writeable
    assert not dataset.target_ids.flags.writeable
    assert np.shares_memory(dataset[1][0], dataset.input_ids)
    for inputs, targets in DataLoader(dataset, 2):
        assert not share([inputs, targets], [dataset.input_ids])
        assert inputs.flags.writeable
        assert targets.flags.writeable
