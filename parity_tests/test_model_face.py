"""The model's face: the names, shapes and calls that users of the package rely on."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numpygpt import GPT_CONFIG_124M, PRESETS, AdamW, GPTConfig, GPTModel, InputError, TorchGenerator
from numpygpt.model.config import ACTIVATIONS
from numpygpt.model.initialization import allocate
from numpygpt.model.sizes import num_parameters
from numpygpt.tree import named
from parity_tests.command import python

CONFIG = GPTConfig(vocab_size=11, context_length=5, emb_dim=6, n_heads=2, n_layers=2, drop_rate=0.5, qkv_bias=True)
TIED = replace(CONFIG, tie_weights=True)
IDS = np.array([[3, 0, 10, 3], [1, 1, 7, 2], [9, 8, 4, 5]])

configs = st.builds(
    lambda head_dim, n_heads, **fields: GPTConfig(emb_dim=head_dim * n_heads, n_heads=n_heads, drop_rate=0.0, **fields),
    vocab_size=st.integers(1, 9),
    context_length=st.integers(1, 5),
    head_dim=st.integers(1, 3),
    n_heads=st.integers(1, 3),
    n_layers=st.integers(1, 3),
    qkv_bias=st.booleans(),
    tie_weights=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
)


def expected_shapes(config):
    """The names and shapes of the parameters, in their order."""
    without = () if config.bias else ("out_proj.bias", "layers.0.bias", "layers.2.bias", "shift")
    return {name: shape for name, shape in shapes_with_biases(config).items() if not name.endswith(without)}


def shapes_with_biases(config):
    V, C, D = config.vocab_size, config.context_length, config.emb_dim
    shapes = {"tok_emb.weight": (V, D), "pos_emb.weight": (C, D)}
    for i in range(config.n_layers):
        for name in ("W_query", "W_key", "W_value"):
            shapes[f"trf_blocks.{i}.att.{name}.weight"] = (D, D)
            if config.qkv_bias:
                shapes[f"trf_blocks.{i}.att.{name}.bias"] = (D,)
        shapes |= {
            f"trf_blocks.{i}.att.out_proj.weight": (D, D),
            f"trf_blocks.{i}.att.out_proj.bias": (D,),
            f"trf_blocks.{i}.ff.layers.0.weight": (4 * D, D),
            f"trf_blocks.{i}.ff.layers.0.bias": (4 * D,),
            f"trf_blocks.{i}.ff.layers.2.weight": (D, 4 * D),
            f"trf_blocks.{i}.ff.layers.2.bias": (D,),
        }
        for norm in ("norm1", "norm2"):
            shapes |= {f"trf_blocks.{i}.{norm}.scale": (D,), f"trf_blocks.{i}.{norm}.shift": (D,)}
    return shapes | {"final_norm.scale": (D,), "final_norm.shift": (D,), "out_head.weight": (V, D)}


def shapes(arrays):
    return [(name, array.shape) for name, array in arrays.items()]


def copies(arrays):
    return {name: array.copy() for name, array in arrays.items()}


def assert_equal(ours, expected):
    assert list(ours) == list(expected)
    for name in expected:
        assert np.array_equal(ours[name], expected[name]), name


# Names, shapes, order, counts


@settings(max_examples=10)
@given(config=configs)
def test_names_shapes_and_order(config):
    model = GPTModel(config)
    expected = expected_shapes(config)
    assert shapes(model.state_dict()) == list(expected.items())
    if config.tie_weights:
        del expected["out_head.weight"]
    assert shapes(model.named_parameters()) == list(expected.items())
    assert model.num_parameters() == num_parameters(config)
    assert model.num_parameters() == sum(array.size for array in model.named_parameters().values())


def test_the_124m_model_has_163_009_536_parameters():
    """They are counted on arrays that are never touched, so that no memory is taken."""
    config = GPTConfig.of(GPT_CONFIG_124M)
    arrays = dict(named(allocate(config, np.float32)))
    assert shapes(arrays) == list(expected_shapes(config).items())
    assert sum(array.size for array in arrays.values()) == 163_009_536
    assert num_parameters(config) == 163_009_536


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("book-124M", 163_009_536),
    ],
)
def test_the_models_that_have_a_name_count_as_published(name, parameters):
    assert num_parameters(PRESETS[name]) == parameters


# Making a model


def test_a_configuration_may_be_a_dict_or_a_gptconfig():
    cfg = {name: getattr(CONFIG, name) for name in GPT_CONFIG_124M}
    models = GPTModel(cfg), GPTModel(CONFIG)
    assert models[0].config == models[1].config == CONFIG
    assert_equal(models[0].state_dict(), models[1].state_dict())


def test_the_seed_is_123_unless_another_is_given():
    weights = GPTModel(CONFIG).state_dict()
    assert_equal(GPTModel(CONFIG, seed=123).state_dict(), weights)
    other = GPTModel(CONFIG, seed=124).state_dict()
    drawn = [name for name in weights if "norm" not in name]
    assert not any(np.array_equal(weights[name], other[name]) for name in drawn)


def test_a_generator_is_drawn_on_from_where_it_stands():
    rng = TorchGenerator(123)
    first, second = GPTModel(CONFIG, seed=rng), GPTModel(CONFIG, seed=rng)
    assert_equal(first.state_dict(), GPTModel(CONFIG).state_dict())
    assert not np.array_equal(first.state_dict()["tok_emb.weight"], second.state_dict()["tok_emb.weight"])


def test_norms_start_as_the_identity():
    for name, array in GPTModel(CONFIG).state_dict().items():
        if "norm" in name:
            assert (array == name.endswith("scale")).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_the_dtype_is_that_of_everything(dtype):
    model = GPTModel(CONFIG, dtype=dtype)
    loss, grads = model.loss_and_grads(IDS, IDS, rng=TorchGenerator(1))
    arrays = [*model.state_dict().values(), model(IDS), loss, *grads.values()]
    assert {array.dtype for array in arrays} == {np.dtype(dtype)} == {model.dtype}
    for name, array in GPTModel(CONFIG).state_dict().items():
        assert np.array_equal(model.state_dict()[name], array), "the same weights in every dtype"


def test_the_dtype_is_float32_unless_another_is_given():
    assert GPTModel(CONFIG).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.int64, "complex64"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(InputError, match=f"dtype is {np.dtype(dtype)}; expected float32, float64 or complex128"):
        GPTModel(CONFIG, dtype=dtype)


# Tied weights


def test_another_attention_is_refused():
    with pytest.raises(InputError, match="attention is 'fast'; expected 'math' or 'flash'"):
        GPTModel(GPTConfig(11, 5, 6, 2, 1, 0.0, False), attention="fast")
    model = GPTModel(GPTConfig(11, 5, 6, 2, 1, 0.0, False))
    with pytest.raises(InputError, match="attention is 'fast'"):
        model.attention = "fast"


def test_a_state_dict_of_nothing_lacks_every_name():
    with pytest.raises(InputError, match=r"missing: tok_emb\.weight, pos_emb\.weight"):
        GPTModel.from_state_dict(GPTConfig(11, 5, 6, 2, 1, 0.0, False), {})


def test_tied_weights_are_one_array_with_one_gradient():
    model = GPTModel(TIED, dtype=np.float64)
    state_dict = model.state_dict()
    assert state_dict["out_head.weight"] is state_dict["tok_emb.weight"]
    assert model.num_parameters() == GPTModel(CONFIG).num_parameters() - state_dict["tok_emb.weight"].size
    _, grads = model.loss_and_grads(IDS, IDS)
    assert list(grads) == list(model.named_parameters())
    AdamW(model).step(grads)
    assert model.state_dict()["out_head.weight"] is model.state_dict()["tok_emb.weight"]


def test_tied_weights_load_with_or_without_the_head():
    weights = copies(GPTModel(TIED, seed=1).state_dict())
    without = {name: array for name, array in weights.items() if name != "out_head.weight"}
    for mapping in (weights, without):
        model = GPTModel(TIED)
        model.load_state_dict(mapping)
        assert_equal(model.state_dict(), weights)
    weights["out_head.weight"][0, 0] += 1
    before = copies(model.state_dict())
    with pytest.raises(InputError, match=r"^out_head\.weight differs from tok_emb\.weight, .*tie_weights=False$"):
        model.load_state_dict(weights)
    assert_equal(model.state_dict(), before)


# state_dict and load_state_dict


def test_the_state_dict_is_the_models_own_arrays():
    model = GPTModel(CONFIG)
    before = model(IDS)
    model.state_dict()["out_head.weight"][...] *= 2
    assert np.array_equal(model(IDS), 2 * before)


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_weights_go_from_one_model_to_another(config):
    weights = GPTModel(config, seed=1).state_dict()
    model = GPTModel(config)
    assert model.load_state_dict(weights) is None
    assert_equal(model.state_dict(), weights)
    assert_equal(GPTModel.from_state_dict(config, weights).state_dict(), weights)
    for name, array in model.named_parameters().items():
        assert not np.shares_memory(array, weights[name]), "the arrays are copied"


def test_weights_load_in_the_models_dtype_whatever_their_order_and_layout():
    weights = GPTModel(CONFIG, seed=1, dtype=np.float64).state_dict()
    other = {name: np.asfortranarray(weights[name]) for name in reversed(weights)}
    other["pos_emb.weight"] = np.repeat(weights["pos_emb.weight"], 2, axis=1)[:, ::2]
    model = GPTModel(CONFIG)
    model.load_state_dict(other)
    assert {array.dtype for array in model.state_dict().values()} == {np.dtype(np.float32)}
    assert_equal(model.state_dict(), weights)
    assert GPTModel.from_state_dict(CONFIG, weights).dtype == np.float64
    assert GPTModel.from_state_dict(CONFIG, weights, np.float32).dtype == np.float32


def test_the_books_mask_buffers_are_ignored():
    weights = copies(GPTModel(CONFIG, seed=1).state_dict())
    masks = {f"trf_blocks.{i}.att.mask": np.triu(np.ones((5, 5)), k=1) for i in range(CONFIG.n_layers)}
    model = GPTModel(CONFIG)
    model.load_state_dict({**masks, **weights})
    assert_equal(model.state_dict(), weights)


def last_array_of_complex(model, mapping):
    mapping["out_head.weight"] = mapping["out_head.weight"].astype(np.complex64)


def last_array_of_another_shape(model, mapping):
    mapping["out_head.weight"] = mapping["out_head.weight"].T.copy()


def last_array_of_text(model, mapping):
    mapping["out_head.weight"] = np.full((11, 6), "0.5")


def last_array_missing(model, mapping):
    del mapping["out_head.weight"]


def last_parameter_read_only(model, mapping):
    model.parameters.out_head.weight.setflags(write=False)


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, position="sinusoidal")], ids=["learned", "sinusoidal"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (last_array_of_complex, r"of another kind of number: out_head\.weight complex64, expected float32; read-only"),
        (last_array_of_another_shape, r"misshaped: out_head\.weight \(6, 11\), expected \(11, 6\)"),
        (last_array_of_text, r"of another kind of number: out_head\.weight <U3, expected float32; read-only"),
        (last_array_missing, r"missing: out_head\.weight"),
        (last_parameter_read_only, r"another kind of number: none; read-only in the model: out_head\.weight"),
    ],
)
def test_everything_is_checked_before_anything_is_copied(config, spoil, message):
    """The fault is in the last array, before which all others could have been copied."""
    model = GPTModel(config)
    before, bits = copies(model.state_dict()), model(IDS)
    mapping = copies(GPTModel(config, seed=1).state_dict())
    spoil(model, mapping)
    given = copies(mapping)
    with pytest.raises(InputError, match=message):
        model.load_state_dict(mapping)
    assert_equal(model.state_dict(), before)
    assert_equal(mapping, given)
    assert np.array_equal(model(IDS), bits)


def test_tied_weights_are_checked_before_anything_is_copied():
    """Here too the head is the last array. One of its values is wrong, or its shape."""
    model = GPTModel(TIED)
    before = copies(model.state_dict())
    for change in (lambda head: head + np.eye(11, 6), lambda head: head[:10]):
        mapping = copies(GPTModel(TIED, seed=1).state_dict())
        mapping["out_head.weight"] = change(mapping["out_head.weight"])
        with pytest.raises(InputError, match=r"out_head\.weight differs from tok_emb\.weight"):
            model.load_state_dict(mapping)
        assert_equal(model.state_dict(), before)


def test_every_wrong_name_and_shape_is_listed_and_nothing_is_changed():
    model = GPTModel(CONFIG)
    before = copies(model.state_dict())
    mapping = copies(GPTModel(CONFIG, seed=1).state_dict())
    missing = ["pos_emb.weight", "trf_blocks.1.att.W_key.bias"]
    for name in missing:
        del mapping[name]
    unexpected = ["trf_blocks.2.norm1.scale", "lm_head.weight"]
    for name in unexpected:
        mapping[name] = np.zeros(6)
    misshaped = {"tok_emb.weight": (12, 6), "trf_blocks.0.ff.layers.0.weight": (6, 24), "final_norm.scale": ()}
    for name, shape in misshaped.items():
        mapping[name] = np.zeros(shape)
    with pytest.raises(InputError) as caught:
        model.load_state_dict(mapping)
    listed = "tok_emb.weight (12, 6), expected (11, 6), trf_blocks.0.ff.layers.0.weight (6, 24), expected (24, 6), "
    assert str(caught.value) == (
        f"the state dict does not fit the model: missing: {', '.join(missing)}; unexpected: {', '.join(unexpected)}; "
        f"misshaped: {listed}final_norm.scale (), expected (6,)"
    )
    assert_equal(model.state_dict(), before)


# Calls


def test_logits_have_a_score_for_each_next_token():
    model = GPTModel(CONFIG)
    for in_idx in (IDS, IDS.tolist()):
        logits = model(in_idx)
        assert logits.shape == (3, 4, 11)
        assert np.array_equal(logits, model(IDS))


INTEGERS = [np.int8, np.uint8, np.uint16, np.uint64, ">i4"]


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: np.dtype(dtype).str)
def test_token_ids_and_targets_may_be_integers_of_any_dtype(dtype):
    """They go up to the largest that the dtype holds, such as 255 and 127. The vocabulary is larger, or just fits."""
    largest = min(np.iinfo(dtype).max, 299)
    ids = np.array([[0, largest, 1, largest - 1], [largest, 0, 7, 2]])
    targets = ids[:, ::-1].copy()
    for vocab_size in {largest + 1, 300}:
        model = GPTModel(replace(CONFIG, vocab_size=vocab_size, n_layers=1), dtype=np.float64)
        assert np.array_equal(model(ids.astype(dtype)), model(ids))
        if np.issubdtype(dtype, np.signedinteger):
            targets[0, 0] = -100  # does not count
        loss, grads = model.loss_and_grads(ids.astype(dtype), targets.astype(dtype))
        expected_loss, expected = model.loss_and_grads(ids, targets)
        assert loss == expected_loss
        assert_equal(grads, expected)
        logits, past = model.decode(ids[:, :3].astype(dtype))
        assert np.array_equal(logits, model.decode(ids[:, :3])[0])
        again, _ = model.decode(ids[:, 3:].astype(dtype), past)
        assert np.array_equal(again, model.decode(ids[:, 3:], past)[0])


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: np.dtype(dtype).str)
def test_the_first_id_past_the_vocabulary_is_named_in_any_dtype(dtype):
    largest = int(min(np.iinfo(dtype).max, 299))
    model = GPTModel(replace(CONFIG, vocab_size=largest))
    outside, inside = np.array([[largest]], dtype), np.array([[largest - 1]], dtype)
    with pytest.raises(InputError, match=f"^id {largest} is outside the table's {largest} rows; ids go from 0"):
        model(outside)
    with pytest.raises(InputError, match=f"^target id {largest} is outside the vocabulary of {largest}; ids go"):
        model.loss_and_grads(inside, outside)
    assert np.isfinite(model.loss_and_grads(inside, inside)[0])


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_gradients_have_the_names_and_shapes_of_the_parameters(config):
    model = GPTModel(config)
    loss, grads = model.loss_and_grads(IDS[:, :-1], IDS[:, 1:])
    assert np.ndim(loss) == 0
    assert shapes(grads) == shapes(model.named_parameters())


def test_steps_of_the_optimizer_train_every_parameter_in_place():
    model = GPTModel(CONFIG)
    optimizer = AdamW(model, lr=0.1, weight_decay=0.1)
    arrays, before = model.state_dict(), copies(model.state_dict())
    first, _ = model.loss_and_grads(IDS[:1, :-1], IDS[:1, 1:])
    for _ in range(10):
        loss, grads = model.loss_and_grads(IDS[:1, :-1], IDS[:1, 1:])
        optimizer.step(grads)
    assert loss < first / 10
    assert all(np.shares_memory(model.state_dict()[name], arrays[name]) for name in arrays)
    assert not any(np.array_equal(arrays[name], before[name]) for name in arrays)


# Importing


def test_importing_takes_under_half_a_second_and_nothing_heavy():
    """It is processor time, because others share the machine, and the best of three, because the disk may be cold."""
    code = """if True:
        import sys, time
        start = time.process_time()
        import numpygpt
        seconds = time.process_time() - start
        heavy = {"torch", "tensorflow", "matplotlib", "tiktoken", "safetensors", "tqdm", "pydoc_data.topics"}
        print(seconds, sorted(heavy.intersection(sys.modules)))
    """
    runs = []
    for _ in range(3):
        done = python("-c", code)
        assert done.stderr == ""
        seconds, imported = done.stdout.split(maxsplit=1)
        assert imported == "[]\n"
        runs.append(float(seconds))
        if min(runs) < 0.5:
            break
    assert min(runs) < 0.5
