"""Any leaves may be frozen, have a dtype of their own, or belong to another kind of node.

A frozen leaf costs nothing: it has no gradient, needs no product, and saves nothing. A trained leaf has the gradient of
full training, bit for bit if the same products are taken.
"""

import copy
import inspect
import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from numpygpt.checks.record import Call, differentiated
from numpygpt.checks.records import OPERATIONS
from numpygpt.checks.source import at_random
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import read_checkpoint, write_checkpoint
from numpygpt.layers import multi_head_attention, projection, recomputed_block, transformer_block
from numpygpt.layers import parameters as p
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_of as saved_model
from numpygpt.model.saving import model_section
from numpygpt.ops import attention, flash_attention, layer_norm, linear
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array
from numpygpt.training.adamw import AdamW
from numpygpt.tree import everything, mapped, mapped_by_name, named, within
from parity_tests import small_models
from parity_tests.small_models import (
    FEWER,
    Followed,
    arrays_in,
    assert_agrees,
    assert_equal,
    assert_same_gradients,
    copies,
    followed,
    ids_of,
    model_of,
)
from parity_tests.strategies import seeds
from parity_tests.tolerances import FACTOR
from torchgpt.bridge import to_torch

CONFIG = GPTConfig(11, 6, 12, 3, n_layers=2, drop_rate=0.25, qkv_bias=True)
INPUTS, TARGETS = np.random.default_rng(0).integers(0, 11, (2, 2, 5))
OPERANDS = ("W_query", "W_key", "W_value")


@st.composite
def configs(draw):
    config = draw(small_models.configs())
    fields = {**config.to_dict(), "n_layers": draw(st.integers(1, 3))}
    if config.emb_dim % 2 == 0:
        fields["position"] = draw(st.sampled_from(["learned", "sinusoidal"]))
    return GPTConfig(**fields)


def some_of(names, rng):
    """One of the names, a few, half or most of them."""
    share = rng.choice([0.0, 0.1, 0.5, 0.95])
    return {name for name in names if rng.random() < share} or {str(rng.choice(list(names)))}


def in_three_products(model):
    """The same parameters, with the weights of queries, keys and values in separate arrays."""
    other = copy.copy(model)
    other.parameters = mapped(lambda array: array, model.parameters)
    return other


def alike(names):
    """The names, with those of queries in the place of keys' and values', so that all three are trained or none."""
    others = {name for name in names if "W_key" in name or "W_value" in name}
    queries = {name for name in names if "W_query" in name}
    return (names - others) | {name.replace("W_query", other) for name in queries for other in OPERANDS}


# Operations


SIZES = {"queries": (2, 3, 4, 5), "keys": (2, 3, 6, 5), "values": (2, 3, 6, 5)}


@pytest.mark.parametrize(
    ("operation", "shapes", "options"),
    [
        (linear, {"x": (2, 3, 4), "weight": (5, 4), "bias": (5,)}, {}),
        (layer_norm, {"x": (2, 3, 4), "scale": (4,), "shift": (4,)}, {}),
        (attention, SIZES, {}),
        (flash_attention, SIZES, {"tile": 2}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_operations_wanted_gradients_are_those_of_all(operation, shapes, options):
    rng = np.random.default_rng(0)
    arguments = [rng.standard_normal(shape) for shape in shapes.values()]
    output, saved = operation.forward(*arguments, **options)
    d_output = rng.standard_normal(output.shape)
    expected = operation.backward(d_output, saved)._asdict()
    for count in range(len(shapes) + 1):
        for wanted in itertools.combinations(shapes, count):
            same, fewer_saved = operation.forward(*arguments, **options, wanted=wanted)
            gradients = operation.backward(d_output, fewer_saved)._asdict()
            assert np.array_equal(same, output)
            assert [name for name, gradient in gradients.items() if gradient is not None] == list(wanted)
            assert_equal({n: gradients[n] for n in wanted}, {n: expected[n] for n in wanted})


def test_a_linear_saves_the_factors_of_the_wanted_products_alone():
    x, weight = np.ones((2, 3)), np.ones((4, 3))
    for wanted, expected in ((("x",), (None, weight)), (("weight",), (x, None)), ((), (None, None))):
        _, saved = linear.forward(x, weight, wanted=wanted)
        assert saved.x is expected[0]
        assert saved.weight is expected[1]


# Gradients of some leaves of a model


@FEWER
@given(configs(), seeds, st.sampled_from(["math", "flash"]), st.booleans())
def test_trained_leaves_have_the_gradients_of_full_training(config, seed, attention, checkpoint_activations):
    """Exactly the trained names have one, bit for bit. Queries, keys and values take one product, or three."""
    one_product, in_idx, rng = model_of(config, seed), ids_of(config, seed), np.random.default_rng(seed)
    one_product.attention, one_product.checkpoint_activations = attention, checkpoint_activations
    for model, drawn in ((one_product, alike), (in_three_products(one_product), set)):
        expected_loss, expected = model.loss_and_grads(in_idx, in_idx, rng=TorchGenerator(seed))
        names = drawn(some_of(expected, rng))
        loss, grads = model.loss_and_grads(in_idx, in_idx, rng=TorchGenerator(seed), trained=names.__contains__)
        assert loss == expected_loss
        assert_equal(grads, {name: expected[name] for name in expected if name in names})


@pytest.mark.parametrize("attention", ["math", "flash"])
def test_of_stacked_weights_any_may_be_trained(attention):
    """There are three products in the place of one, so the gradients are the same except for rounding."""
    model = model_of(CONFIG, 0)
    model.attention = attention
    _, expected = model.loss_and_grads(INPUTS, TARGETS)
    for count in (1, 2):
        for operands in itertools.combinations(OPERANDS, count):

            def trained(name, operands=operands):
                return any(operand in name for operand in operands)

            _, grads = model.loss_and_grads(INPUTS, TARGETS, trained=trained)
            assert_same_gradients(grads, {name: expected[name] for name in expected if trained(name)})


@pytest.mark.parametrize(
    ("trained", "products"),
    [("", 1), ("out_proj", 1), ("W_", 1), ("W_key", 3), ("weight", 1), ("W_value.bias", 3)],
)
def test_stacked_weights_make_one_product_where_all_three_are_trained_or_none(trained, products):
    att = model_of(CONFIG, 0).parameters.trf_blocks[0].att
    x = np.random.default_rng(0).standard_normal((2, 5, 12))
    _, saved = multi_head_attention.forward(x, att, n_heads=3, trained=lambda name: trained in name)
    assert len(saved.projections) == products


def test_a_layer_drops_nothing_and_has_pytorchs_eps_unless_it_is_told_otherwise():
    for layer in (multi_head_attention, transformer_block):
        usual = inspect.signature(layer.forward).parameters
        assert usual["drop_rate"].default == 0
        assert not usual["flash"].default, "what attention keeps for the backward is the whole of its weights"
    assert inspect.signature(transformer_block.forward).parameters["norm_eps"].default == torch.nn.LayerNorm(1).eps


@pytest.mark.parametrize("record", OPERATIONS.values(), ids=list(OPERATIONS))
def test_every_gradient_is_given_unless_an_option_says_otherwise(record):
    """The default is to differentiate by everything, so a caller who gives no such option finds no None."""
    call = record.draw(at_random(0))
    options = {name: option for name, option in call.options.items() if name not in ("wants_x", "trained", "wanted")}
    output, saved = record.module.forward(**call.arguments, **options)
    gradients = dict(named(record.module.backward(np.ones_like(output), saved)._asdict()))
    shapes = {name: a.shape for name, a in differentiated(record.module, Call(call.arguments, options)).items()}
    assert ("x" in call.arguments) == ("x" in shapes), "an input is wanted, too"
    shapes.pop("inputs", None)  # the body's, which are token ids in most calls
    assert {name: getattr(gradients[name], "shape", None) for name in shapes} == shapes


def test_where_nothing_is_trained_there_are_no_gradients():
    model = model_of(CONFIG, 0)
    expected_loss, _ = model.loss_and_grads(INPUTS, TARGETS)
    assert model.loss_and_grads(INPUTS, TARGETS, trained=lambda name: False) == (expected_loss, {})


def test_a_tied_head_is_trained_with_the_embedding_or_not_at_all():
    model = model_of(GPTConfig(**{**CONFIG.to_dict(), "tie_weights": True}), 0)
    _, expected = model.loss_and_grads(INPUTS, TARGETS)
    _, grads = model.loss_and_grads(INPUTS, TARGETS, trained=lambda name: name == "tok_emb.weight")
    assert_equal(grads, {"tok_emb.weight": expected["tok_emb.weight"]})
    _, grads = model.loss_and_grads(INPUTS, TARGETS, trained=lambda name: name != "tok_emb.weight")
    assert_equal(grads, {name: expected[name] for name in expected if name != "tok_emb.weight"})


# What is not computed, and what is not saved


def multiplications():
    """How many multiplications all followed products took; one for queries, keys and values counts as three."""
    products = [(operands, result) for function, operands, result in Followed.calls if function is np.matmul]
    return sum(result.size * operands[0].shape[-1] for operands, result in products)


def multiplications_needed(config, attention, names, B, T):
    """How many the gradients of these parameters need, found by following the forward from leaf to leaf."""
    D, total = config.emb_dim, 0
    scores = B * T * T * D  # the multiplications of all heads

    def any_in(*parts):
        return any(name.startswith(part) for name in names for part in parts)

    def projected(weight, inputs, outputs, upstream):
        return (upstream + (f"{weight}.weight" in names)) * B * T * inputs * outputs

    upstream = any_in("tok_emb", "pos_emb")
    for i in range(config.n_layers):
        att, ff = f"trf_blocks.{i}.att.", f"trf_blocks.{i}.ff."
        upstream |= any_in(f"trf_blocks.{i}.norm1")
        total += sum(projected(f"{att}{operand}", D, D, upstream) for operand in OPERANDS)
        queries, keys, values = (upstream or any_in(f"{att}{operand}") for operand in OPERANDS)
        upstream = queries or keys or values
        total += scores * (values + (queries or keys) + queries + keys)
        total += scores * (upstream and attention == "flash")  # the scores are formed again
        total += projected(f"{att}out_proj", D, D, upstream)
        upstream |= any_in(f"{att}out_proj", f"trf_blocks.{i}.norm2")
        total += projected(f"{ff}layers.0", D, 4 * D, upstream)
        upstream |= any_in(f"{ff}layers.0")
        total += projected(f"{ff}layers.2", 4 * D, D, upstream)
        upstream |= any_in(f"{ff}layers.2")
    head = "tok_emb" if config.tie_weights else "out_head"
    return total + projected(head, D, config.vocab_size, upstream or any_in("final_norm"))


def tensors_with_a_gradient(twin, in_idx, names):
    """The tensors that require a gradient in PyTorch if only these parameters do."""
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(name in names)
    needed = []
    twin(torch.from_numpy(in_idx), lambda name, tensor: needed.append(name) if tensor.requires_grad else None)
    return needed


def assert_backward_computes_what_is_needed(model, twin, in_idx, names):
    """The gradients of these parameters and of the tensors that depend on them, and only the products for both."""
    logits, saved = model.forward(in_idx, trained=names.__contains__)
    told = []
    grads = model.backward(logits, followed(saved), watch=lambda name, _: told.append(name))
    assert set(grads) == names
    assert multiplications() == multiplications_needed(model.config, model.attention, names, *in_idx.shape)
    if model.attention == "math":  # tiles do not show the scores
        assert sorted(told) == sorted(f"d_{name}" for name in tensors_with_a_gradient(twin, in_idx, names))


@FEWER
@given(configs(), seeds, st.sampled_from(["math", "flash"]))
def test_nothing_is_computed_for_frozen_leaves(config, seed, attention):
    """Every product of a backward has a factor that was saved or computed from what was saved, and so is counted."""
    model, in_idx, rng = model_of(config, seed), ids_of(config, seed), np.random.default_rng(seed)
    model.attention = attention
    twin = to_torch(model, copy=True)
    for names in (set(model.named_parameters()), *(some_of(model.named_parameters(), rng) for _ in range(3))):
        assert_backward_computes_what_is_needed(model, twin, in_idx, names)


@pytest.mark.parametrize(("attention", "part"), [("math", ""), ("flash", "trf_blocks.1.att.")])
def test_nothing_is_computed_for_others_where_one_leaf_is_trained(attention, part):
    """Each leaf of the second block is tried, and each leaf outside of the blocks."""
    model = model_of(CONFIG, 0)
    model.attention = attention
    twin = to_torch(model, copy=True)
    for name in model.named_parameters():
        if name.startswith(part) and not name.startswith("trf_blocks.0"):
            assert_backward_computes_what_is_needed(model, twin, INPUTS, {name})


@FEWER
@given(configs(), seeds, st.booleans())
def test_blocks_before_the_first_trained_leaf_save_nothing(config, seed, checkpoint_activations):
    model, in_idx, rng = model_of(config, seed), ids_of(config, seed), np.random.default_rng(seed)
    model.checkpoint_activations = checkpoint_activations
    for _ in range(3):
        first = int(rng.integers(0, config.n_layers + 1))
        later = [f"trf_blocks.{i}." for i in range(first, config.n_layers)] + ["final_norm"]
        names = some_of([name for name in model.named_parameters() if name.startswith(later[0])], rng)
        names |= some_of([name for name in model.named_parameters() if name.startswith(tuple(later))], rng)
        _, saved = model.forward(in_idx, trained=names.__contains__)
        assert [block is None for block in saved.body.trf_blocks] == [i < first for i in range(config.n_layers)]
        recomputed = {type(block) is recomputed_block.Saved for block in saved.body.trf_blocks if block is not None}
        assert recomputed <= {checkpoint_activations}
        assert saved.body.tok_emb is saved.body.pos_emb is None


@pytest.mark.parametrize("attention", ["math", "flash"])
@pytest.mark.parametrize(
    ("name", "is_saved"), [("ff.layers.2.weight", False), ("att.out_proj.bias", False), ("att.W_value.weight", True)]
)
def test_an_attention_saves_nothing_if_no_gradient_passes_through_it(attention, name, is_saved):
    model, name = model_of(CONFIG, 0), f"trf_blocks.0.{name}"
    model.attention = attention
    (B, T), H = INPUTS.shape, CONFIG.n_heads
    _, saved = model.forward(INPUTS, trained=lambda leaf: leaf == name)
    shapes = [array.shape for array in arrays_in(saved.body.trf_blocks[0])]
    of_heads = {(B, H, T, T), (B, H, T, CONFIG.head_dim)}
    assert bool(of_heads.intersection(shapes)) == is_saved


def test_training_some_leaves_changes_those_alone():
    model = model_of(CONFIG, 0)
    before = copies(model.state_dict())
    names = {"tok_emb.weight", "trf_blocks.1.att.W_key.weight", "trf_blocks.0.norm2.shift"}
    optimizer = AdamW({name: array for name, array in model.named_parameters().items() if name in names}, lr=0.1)
    for _ in range(2):
        _, grads = model.loss_and_grads(INPUTS, TARGETS, trained=names.__contains__)
        optimizer.step(grads)
    changed = {name for name, array in model.state_dict().items() if not np.array_equal(array, before[name])}
    assert changed == names
    assert set(optimizer.exp_avg) == set(optimizer.exp_avg_sq) == names


# Dtypes that differ from leaf to leaf


def in_dtypes(model, dtype_of):
    """The model with each leaf in the dtype that `dtypes` gives for its name."""
    other = copy.copy(model)
    other.parameters = mapped_by_name(lambda name, array: array.astype(dtype_of(name)), model.parameters)
    return other


def in_float64(model):
    """The model with the same values in float64, which holds every float16 and float32."""
    return in_dtypes(model, lambda name: np.float64)


def error(ours, expected):
    return np.linalg.norm(ours.astype(np.float64) - expected)


@FEWER
@given(small_models.configs(tie_weights=False), seeds, st.sampled_from(["math", "flash"]), st.booleans())
def test_leaves_of_any_dtypes_are_computed_in_the_common_one(config, seed, attention, checkpoint_activations):
    """Embeddings in float64 make every activation float64. Then narrower leaves count only by their values."""
    rng, model = np.random.default_rng(seed), model_of(config, seed)
    dtypes = {name: rng.choice([np.float16, np.float32, np.float64]) for name in model.named_parameters()}
    model = in_dtypes(model, (dtypes | {"tok_emb.weight": np.float64}).__getitem__)
    model.attention, model.checkpoint_activations = attention, checkpoint_activations
    in_idx = ids_of(config, seed)
    expected_loss, expected = in_float64(model).loss_and_grads(in_idx, in_idx, rng=TorchGenerator(seed))
    loss, grads = model.loss_and_grads(in_idx, in_idx, rng=TorchGenerator(seed))
    assert_agrees(loss, expected_loss)
    assert_same_gradients(grads, expected)
    assert {gradient.dtype for gradient in grads.values()} == {np.dtype(np.float64)}
    full, past = model(in_idx), None
    assert_agrees(full, in_float64(model)(in_idx))
    for token in range(in_idx.shape[1]):
        logits, past = model.decode(in_idx[:, token : token + 1], past)
    assert_agrees(logits, full[:, -1])


def norms_in_float64(name):
    return np.float64 if "norm" in name else np.float32


def values_in_float64(name):
    return np.float64 if "W_value" in name else np.float32


def matrices_in_float16(name):
    return np.float16 if ".att." in name or ".ff." in name else np.float32


@pytest.mark.parametrize(
    ("dtype_of", "common", "attention"),
    [
        (norms_in_float64, np.float64, "math"),
        (values_in_float64, np.float64, "math"),
        (values_in_float64, np.float64, "flash"),
        (matrices_in_float16, np.float32, "flash"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_model_of_mixed_dtypes_is_as_good_as_one_in_float32(dtype_of, common, attention):
    """Its error is at most FACTOR times that of the same weights all in float32. It also trains and decodes."""
    model = in_dtypes(model_of(CONFIG, 0), dtype_of)
    model.attention = attention
    truth, narrow = in_float64(model), in_dtypes(model, lambda name: np.float32)
    expected = truth(INPUTS)
    logits = model(INPUTS)
    assert logits.dtype == common
    assert error(logits, expected) <= FACTOR * error(narrow(INPUTS), expected)
    _, past = model.decode(INPUTS[:, :3])
    decoded, _ = model.decode(INPUTS[:, 3:], past)
    assert decoded.dtype == common
    assert error(decoded, expected[:, -1]) <= FACTOR * error(narrow(INPUTS)[:, -1], expected[:, -1])
    frozen = {name for name, array in model.named_parameters().items() if array.dtype == np.float16}
    loss, grads = model.loss_and_grads(INPUTS, TARGETS, trained=lambda name: name not in frozen)
    _, narrow_grads = narrow.loss_and_grads(INPUTS, TARGETS)
    _, expected_grads = truth.loss_and_grads(INPUTS, TARGETS)
    assert loss.dtype == common
    for name, gradient in grads.items():
        assert gradient.dtype == common
        assert error(gradient, expected_grads[name]) <= FACTOR * error(narrow_grads[name], expected_grads[name]), name
    optimizer = AdamW({name: array for name, array in model.named_parameters().items() if name not in frozen}, lr=0.01)
    for _ in range(3):
        last, grads = model.loss_and_grads(INPUTS, TARGETS, trained=lambda name: name not in frozen)
        optimizer.step(grads)
    assert last < loss
    assert {name: array.dtype for name, array in model.state_dict().items()} == {
        name: np.dtype(dtype_of(name)) for name in model.state_dict()
    }


def test_mixed_dtypes_go_through_a_state_dict_and_a_checkpoint(tmp_path):
    """The matrices in float16 are frozen, so the optimizer has no state for them."""
    dtypes = {"norm": np.float64, ".att.": np.float16}
    model = in_dtypes(
        model_of(CONFIG, 0), lambda name: next((dtypes[part] for part in dtypes if part in name), np.float32)
    )
    weights = model.state_dict()
    in_common = GPTModel.from_state_dict(CONFIG, weights)
    assert in_common.dtype == model.dtype == np.float64
    assert_equal(in_common.state_dict(), weights)
    trained = {name: array for name, array in weights.items() if array.dtype != np.float16}
    optimizer = AdamW(trained)
    optimizer.step(model.loss_and_grads(INPUTS, TARGETS, trained=trained.__contains__)[1])

    write_checkpoint(tmp_path, {"model": model_section(model), "optimizer": optimizer.section()})
    saved = read_checkpoint(tmp_path)
    read = saved.arrays("model")
    assert_equal(read, weights)
    assert {name: array.dtype for name, array in read.items()} == {name: a.dtype for name, a in weights.items()}
    with pytest.raises(InputError, match=r"the weights are of several dtypes, float16, float32, float64; say in which"):
        saved_model(saved)
    assert_equal(saved_model(saved, np.float64).state_dict(), weights)
    other = AdamW({name: np.zeros_like(array) for name, array in trained.items()})
    other.load_section(saved)
    for moments in ("exp_avg", "exp_avg_sq"):
        assert_equal(getattr(other, moments), getattr(optimizer, moments))


# Other kinds of nodes


class LowRank(NamedTuple):
    """A linear with a side path: y = base(x) + x @ downᵀ @ upᵀ."""

    base: p.Linear
    down: Array
    up: Array


class LowRankSaved(NamedTuple):
    base: Any
    down: Any
    up: Any


class Gradients(NamedTuple):
    x: Any
    parameters: LowRank


@pytest.fixture
def low_rank_projections(monkeypatch):
    """Within the test, `projection` has one more kind of node, as an adapter would add it."""
    plain_forward, plain_backward = projection.forward, projection.backward

    def forward(x, parameters, *, wants_x=True, trained=everything, **options):
        if not isinstance(parameters, LowRank):
            return plain_forward(x, parameters, wants_x=wants_x, trained=trained, **options)
        y, base = plain_forward(x, parameters.base, wants_x=wants_x, trained=within(trained, "base"))
        inner, down = plain_forward(x, p.Linear(parameters.down), wants_x=wants_x, trained=lambda _: trained("down"))
        wants_inner = wants_x or trained("down")
        side, up = plain_forward(inner, p.Linear(parameters.up), wants_x=wants_inner, trained=lambda _: trained("up"))
        return y + side, LowRankSaved(base, down, up)

    def backward(d_y, saved):
        if not isinstance(saved, LowRankSaved):
            return plain_backward(d_y, saved)
        d_x, d_base = plain_backward(d_y, saved.base)
        d_inner, d_up = plain_backward(d_y, saved.up)
        d_down = None
        if d_inner is not None:
            d_side, (d_down, _) = plain_backward(d_inner, saved.down)
            d_x = d_x if d_x is None else d_x + d_side
        return Gradients(d_x, LowRank(d_base, d_down, d_up.weight))

    monkeypatch.setattr(projection, "forward", forward)
    monkeypatch.setattr(projection, "backward", backward)


@pytest.mark.usefixtures("low_rank_projections")
@pytest.mark.parametrize("frozen_base", [False, True])
def test_queries_keys_and_values_may_be_of_different_kinds(frozen_base):
    """Two low-rank nodes and a plain one give what merged matrices give, and gradients by the chain rule."""
    model, rng = model_of(CONFIG, 0), np.random.default_rng(1)
    merged = copy.deepcopy(model)
    blocks = list(in_three_products(model).parameters.trf_blocks)
    sides = {}
    for i, name in ((0, "W_query"), (1, "W_query"), (1, "W_value"), (1, "out_proj")):
        path = f"trf_blocks.{i}.att.{name}"
        down, up = sides[path] = rng.standard_normal((3, 12)), rng.standard_normal((12, 3))
        node = LowRank(getattr(blocks[i].att, name), down, up)
        blocks[i] = blocks[i]._replace(att=blocks[i].att._replace(**{name: node}))
        merged.state_dict()[f"{path}.weight"][...] += up @ down
    model.parameters = model.parameters._replace(trf_blocks=tuple(blocks))
    assert f"{path}.base.weight" in model.state_dict()

    expected_loss, expected = merged.loss_and_grads(INPUTS, TARGETS, rng=TorchGenerator(0))
    loss, grads = model.loss_and_grads(
        INPUTS, TARGETS, rng=TorchGenerator(0), trained=lambda name: not (frozen_base and ".base." in name)
    )
    assert_agrees(loss, expected_loss)
    for path, (down, up) in sides.items():
        d_weight = expected[f"{path}.weight"]
        assert_agrees(grads.pop(f"{path}.down"), up.T @ d_weight)
        assert_agrees(grads.pop(f"{path}.up"), d_weight @ down.T)
        if frozen_base:
            for leaf in ("weight", "bias"):
                expected.pop(f"{path}.{leaf}")
    renamed = {name.replace(".base.", "."): gradient for name, gradient in grads.items()}
    assert_same_gradients({name: renamed[name] for name in expected}, expected)
    assert renamed.keys() == expected.keys()


def test_an_unknown_kind_of_node_is_named():
    with pytest.raises(TypeError, match="a projection's parameters are a Embedding; expected a Linear"):
        projection.forward.__wrapped__(np.ones((1, 2)), p.Embedding(np.ones((2, 2))))
