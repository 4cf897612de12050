"""Tables of names: which tensor of another program is which of ours, and how it lies."""

import tracemalloc

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from numpygpt.errors import InputError
from numpygpt.formats import book, hugging_face, nanogpt, openai
from numpygpt.formats.names import Row, with_parameters
from numpygpt.model.config import PRESETS, GPTConfig
from numpygpt.model.saving import parameter_shapes
from numpygpt.sections import Layout
from parity_tests.small_models import assert_equal, model_of

#: The tables of all formats.
TABLES = {module.__name__.rpartition(".")[2]: module.TABLE for module in (hugging_face, openai, nanogpt, book)}
#: Every embedding and every projection from D to D is a square matrix of one size.
SQUARE = GPTConfig(
    vocab_size=8, context_length=8, emb_dim=8, n_heads=2, n_layers=2, drop_rate=0.0, qkv_bias=True, tie_weights=True
)
RELEASED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")

tables = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


def layouts_of(table, config):
    return {name: Layout("float32", shape) for name, shape in table.shapes(config).items()}


@tables
def test_there_and_back_is_the_same_array(table):
    model = model_of(SQUARE, seed=1)
    theirs = table.to_theirs(SQUARE, model.state_dict())
    assert {name: tensor.shape for name, tensor in theirs.items()} == table.shapes(SQUARE)
    assert_equal(table.to_ours(SQUARE, theirs.__getitem__), model.named_parameters())


def test_square_matrices_are_turned_by_name():
    """No shape tells that a projection is (in, out) and an embedding is not."""
    state_dict = model_of(SQUARE, seed=2).state_dict()
    theirs = hugging_face.TABLE.to_theirs(SQUARE, state_dict)
    for name in ("wte", "wpe"):
        ours = state_dict[{"wte": "tok_emb.weight", "wpe": "pos_emb.weight"}[name]]
        assert ours.shape == ours.T.shape
        assert not np.array_equal(ours, ours.T)
        assert np.array_equal(theirs[f"transformer.{name}.weight"], ours)
    for block in range(SQUARE.n_layers):
        projection = state_dict[f"trf_blocks.{block}.att.out_proj.weight"]
        assert np.array_equal(theirs[f"transformer.h.{block}.attn.c_proj.weight"], projection.T)
        together = theirs[f"transformer.h.{block}.attn.c_attn.weight"]
        for part, name in enumerate(("W_query", "W_key", "W_value")):
            expected = state_dict[f"trf_blocks.{block}.att.{name}.weight"].T
            assert np.array_equal(together[:, 8 * part : 8 * (part + 1)], expected)


def test_a_kernel_has_one_more_axis():
    row = Row("w", ("a", "b"), transposed=True, kernel=True)
    ours = [np.arange(6.0).reshape(2, 3), np.ones((2, 3))]
    theirs = row.from_ours(ours)
    assert theirs.shape == row.shape((2, 3)) == (1, 3, 4)
    assert np.array_equal(theirs[0, :, :2], ours[0].T)
    for part, expected in zip(row.to_ours(theirs), ours, strict=True):
        assert np.array_equal(part, expected)


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_sizes_have_the_shapes_of_transformers_models(name):
    config = PRESETS[name]
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(
            GPT2Config(n_embd=config.emb_dim, n_layer=config.n_layers, n_head=config.n_heads)
        )
    expected = {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}
    assert hugging_face.TABLE.shapes(config) == expected


@tables
@pytest.mark.parametrize("name", RELEASED)
def test_a_table_has_each_parameter_of_the_released_sizes(table, name):
    assert list(table.sources(PRESETS[name])) == list(parameter_shapes(PRESETS[name]))


def test_the_largest_size_is_laid_out_without_memory():
    tracemalloc.start()
    try:
        hugging_face.TABLE.shapes(PRESETS["gpt2-xl"])
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_what_does_not_fit_is_listed():
    layouts = layouts_of(hugging_face.TABLE, SQUARE)
    hugging_face.TABLE.check(SQUARE, layouts)
    del layouts["transformer.wpe.weight"]
    layouts["score.weight"] = Layout("float32", (2, 8))
    layouts["transformer.h.1.mlp.c_fc.weight"] = Layout("float32", (32, 8))
    layouts["transformer.ln_f.bias"] = Layout("int64", (8,))
    layouts["transformer.h.0.attn.bias"] = Layout("bool", (1, 1, 8, 8))
    with pytest.raises(InputError) as refused:
        hugging_face.TABLE.check(SQUARE, layouts)
    assert str(refused.value) == (
        "the tensors do not fit the configuration: missing: transformer.wpe.weight; unexpected: score.weight; "
        "misshaped: transformer.h.1.mlp.c_fc.weight (32, 8), expected (8, 32); "
        "not floating-point: transformer.ln_f.bias int64"
    )


def test_a_file_of_another_model_makes_a_short_message():
    layouts = {f"model.layers.{i}.weight": Layout("float32", (8, 8)) for i in range(500)}
    with pytest.raises(InputError, match=r"missing: .* and 18 more; unexpected: .* and 490 more") as refused:
        hugging_face.TABLE.check(SQUARE, layouts)
    assert len(str(refused.value)) < 2000


def test_a_configuration_of_absurd_sizes_costs_nothing():
    config = GPTConfig.of({**SQUARE.to_dict(), "n_layers": 2**31 - 1})
    with pytest.raises(InputError, match=r"the model has 2147483647 blocks, but there are \d+ tensors in all"):
        hugging_face.TABLE.check(config, layouts_of(hugging_face.TABLE, SQUARE))


# What a model does without

BARE = GPTConfig.of(
    {**SQUARE.to_dict(), "qkv_bias": False, "bias": False, "tie_weights": False, "position": "sinusoidal"}
)


@pytest.mark.parametrize(
    "less",
    [{"qkv_bias": False}, {"bias": False}, {"position": "sinusoidal"}, BARE.to_dict()],
    ids=["queries, keys and values", "other biases", "positions", "all"],
)
def test_stand_ins_are_written_and_found_to_be_such(less):
    config = GPTConfig.of({**SQUARE.to_dict(), **less})
    theirs = hugging_face.TABLE.to_theirs(config, model_of(config, seed=3).state_dict())
    whole = GPTConfig.of({**SQUARE.to_dict(), "tie_weights": config.tie_weights})
    assert theirs.keys() == hugging_face.TABLE.shapes(whole).keys()
    hugging_face.TABLE.check(config, layouts_of(hugging_face.TABLE, config))
    assert hugging_face.TABLE.surplus(config, theirs, theirs.__getitem__) == []


@pytest.mark.parametrize(
    ("tensor", "place", "ours", "change"),
    [
        ("transformer.h.1.attn.c_attn.bias", 8, "trf_blocks.1.att.W_key.bias", {"qkv_bias": True}),
        ("transformer.h.0.mlp.c_proj.bias", 3, "trf_blocks.0.ff.layers.2.bias", {"bias": True}),
        ("transformer.ln_f.bias", 7, "final_norm.shift", {"bias": True}),
        ("transformer.wpe.weight", (7, 7), "pos_emb.weight", {"position": "learned"}),
    ],
)
def test_stand_ins_that_were_trained_are_parameters(tensor, place, ours, change):
    theirs = hugging_face.TABLE.to_theirs(BARE, model_of(BARE, seed=4).state_dict())
    theirs[tensor] = theirs[tensor].copy()
    theirs[tensor][place] += 1e-9
    surplus = hugging_face.TABLE.surplus(BARE, theirs, theirs.__getitem__)
    assert surplus == [ours]
    assert with_parameters(BARE, surplus) == GPTConfig.of({**BARE.to_dict(), **change})


def test_a_head_of_its_own_is_one_only_if_it_differs():
    model = model_of(SQUARE, seed=5)
    theirs = hugging_face.TABLE.to_theirs(SQUARE, model.state_dict())
    theirs["lm_head.weight"] = theirs["transformer.wte.weight"].copy()
    assert hugging_face.TABLE.surplus(SQUARE, theirs, theirs.__getitem__) == []
    theirs["lm_head.weight"][0, 0] += 1
    assert hugging_face.TABLE.surplus(SQUARE, theirs, theirs.__getitem__) == ["out_head.weight"]
