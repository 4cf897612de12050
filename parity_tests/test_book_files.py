"""The book's .pth files: state dicts with our names, alone or with an optimizer's, read and written."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import torchgpt
from numpygpt.errors import InputError
from numpygpt.formats import book, torch_file
from numpygpt.formats.book import TABLE
from numpygpt.model.config import GPT_CONFIG_124M, PRESETS, GPTConfig
from numpygpt.model.saving import model_of, parameter_shapes, saved_tokenizer
from parity_tests.small_models import assert_equal
from parity_tests.small_models import model_of as random_model

#: As the book's script makes it, but smaller: two heads of 64 features.
CFG = {**GPT_CONFIG_124M, "vocab_size": 11, "context_length": 5, "emb_dim": 128, "n_layers": 2, "n_heads": 2}
CONFIG = GPTConfig.of(CFG)
SMALL = GPTConfig.of({**CFG, "emb_dim": 12, "n_heads": 3})


def opened(path, n_heads=None):
    return book.model_in(path, torch_file.load(path), n_heads)


def state_dict_of(model):
    return {name: torch.from_numpy(array.copy()) for name, array in model.state_dict().items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


def masks(config):
    """The buffers of the book's own classes."""
    mask = torch.triu(torch.ones(config.context_length, config.context_length), diagonal=1)
    return {f"trf_blocks.{block}.att.mask": mask for block in range(config.n_layers)}


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True}, {"bias": False}], ids=repr)
def test_a_state_dict_alone_is_read_with_the_books_masks(path, changes):
    model = random_model(replace(CONFIG, **changes), 0, np.float32)
    torch.save(state_dict_of(model) | masks(CONFIG), path)
    read = opened(path)
    assert read.config == model.config
    assert_equal(model_of(read).state_dict(), model.state_dict())
    assert read.notes == ("the file does not tell the number of heads: 2 of 64 features are taken",)


def test_a_model_with_its_optimizer_is_read(path):
    model = torchgpt.GPTModel(CFG)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.tensor([[1, 2]])).sum().backward()
    optimizer.step()
    torch.save({"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}, path)
    read = opened(path)
    assert_equal(model_of(read).state_dict(), {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    assert "of optimizer_state_dict, nothing is read" in read.notes


def test_a_compiled_model_is_read(path):
    model = random_model(CONFIG, 1)
    torch.save({f"_orig_mod.{name}": tensor for name, tensor in state_dict_of(model).items()}, path)
    assert_equal(model_of(opened(path)).state_dict(), model.state_dict())


def test_the_head_is_tied_if_it_is_the_embedding_itself_and_not_if_it_is_equal(path):
    model = random_model(replace(CONFIG, tie_weights=True), 2)
    state_dict = state_dict_of(model)
    torch.save(state_dict, path)
    assert not opened(path).config.tie_weights
    state_dict["out_head.weight"] = state_dict["tok_emb.weight"]
    torch.save(state_dict, path)
    assert opened(path).config.tie_weights
    assert_equal(model_of(opened(path)).state_dict(), model.state_dict())


def test_other_heads_than_of_64_features_must_be_told(path):
    model = random_model(SMALL, 3)
    torch.save(state_dict_of(model), path)
    with pytest.raises(InputError, match=r"number of heads, and emb_dim 12 is no multiple of 64.*; give n_heads$"):
        opened(path)
    assert opened(path, n_heads=3).config == SMALL
    assert not opened(path, n_heads=3).notes
    with pytest.raises(InputError, match="emb_dim 12 is not divisible by n_heads 5"):
        opened(path, n_heads=5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": True, "tie_weights": True},
        {"bias": False, "activation": "gelu_erf"},
        {"position": "sinusoidal"},
        {"norm_eps": 1e-6, "drop_rate": 0.25},
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ours_to_a_pth_to_ours_is_the_same_bit_for_bit_and_torchgpt_takes_it(path, changes, dtype):
    """Number of heads and tokenizer, too, which the tensors do not tell."""
    model = random_model(replace(SMALL, **changes), 4, dtype)
    book.write_file(path, model.config, model.named_parameters(), "bytes")
    read = opened(path)
    assert (read.config, saved_tokenizer(read), read.notes) == (model.config, "bytes", ())
    assert_equal(model_of(read).state_dict(), model.state_dict())
    twin = torchgpt.GPTModel(model.config).to(getattr(torch, np.dtype(dtype).name))
    twin.load_state_dict(torch.load(path, weights_only=True))
    assert_equal({name: tensor.numpy() for name, tensor in twin.state_dict().items()}, model.state_dict())


@pytest.mark.parametrize("tied", [False, True])
def test_the_books_own_class_takes_what_is_written_strictly(path, tied):
    """nn.Module's own load_state_dict, which no code of ours has a part in; it knows no tied weights."""
    model = random_model(replace(CONFIG, tie_weights=tied), 5, np.float32)
    book.write_file(path, model.config, model.named_parameters())
    twin = torchgpt.GPTModel(CFG)
    nn.Module.load_state_dict(twin, torch.load(path, weights_only=True), strict=True)
    assert_equal({name: tensor.numpy() for name, tensor in twin.state_dict().items()}, model.state_dict())


@pytest.mark.parametrize("name", PRESETS)
def test_the_names_and_shapes_of_every_size_are_known_without_weights(name):
    assert list(TABLE.shapes(PRESETS[name]).items()) == list(parameter_shapes(PRESETS[name]).items())


def test_16_bits_are_read_as_float32(path):
    state_dict = {name: tensor.to(torch.bfloat16) for name, tensor in state_dict_of(random_model(CONFIG, 6)).items()}
    torch.save(state_dict, path)
    model = model_of(opened(path))
    assert model.dtype == np.float32
    assert_equal(model.state_dict(), {name: tensor.float().numpy() for name, tensor in state_dict.items()})


def ones(*shape, **options):
    return torch.ones(*shape, **options)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("final_norm.scale", None, "missing: final_norm.scale"),
        ("more", ones(2), "unexpected: more"),
        ("final_norm.scale", ones(3), r"misshaped: final_norm.scale \(3,\), expected \(128,\)"),
        ("final_norm.scale", ones(128, dtype=torch.int64), "not floating-point: final_norm.scale int64"),
        ("tok_emb.weight", None, "there is no tok_emb.weight; expected a matrix"),
        ("pos_emb.weight", ones(5), r"pos_emb.weight is of shape \(5,\); expected a matrix"),
        ("trf_blocks.7.norm1.scale", ones(128), "missing: trf_blocks.2"),
        ("trf_blocks.1.att.W_key.bias", ones(128), "trf_blocks.1.att.W_key.bias of its own"),
        ("tok_emb.weight", ones(1).expand(11, 128), "fewer values than that"),
        ("tok_emb.weight", ones(1).expand(10**7, 10**7), "fewer values than that"),
        ("tok_emb.weight", ones(11, 128).to_sparse(), "asks for torch.Size, torch._utils._rebuild_sparse"),
        ("tok_emb.weight", ones(11, 128, dtype=torch.complex64), "asks for torch.ComplexFloatStorage"),
        ("tok_emb.weight", 3, "tok_emb.weight is a int; expected a tensor"),
    ],
)
def test_tensors_that_are_no_models_are_refused(path, name, tensor, message):
    state_dict = state_dict_of(random_model(CONFIG, 7)) | {name: tensor}
    torch.save({name: tensor for name, tensor in state_dict.items() if tensor is not None}, path)
    assert_refused(path, message)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"model_state_dict": 3}, "the state dict is a int; expected a dict"),
        ([1, 2], "the state dict is a list; expected a dict"),
        (ones(3), "the state dict is a Tensor; expected a dict"),
        ({3: ones(3)}, "the state dict has the key 3; expected texts"),
        ({}, "there is no tok_emb.weight"),
    ],
)
def test_what_is_no_state_dict_is_refused(path, contents, message):
    torch.save(contents, path)
    assert_refused(path, message)


def assert_refused(path, message):
    with pytest.raises(InputError, match=message) as refused:
        opened(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (3, "the attribute numpygpt of the state dict is a int"),
        ({}, "config is missing"),
        ({"config": {**CONFIG.to_dict(), "n_layers": 2**31 - 1}, "tokenizer": None}, "2147483647 blocks"),
        ({"config": {**CONFIG.to_dict(), "emb_dim": 64}, "tokenizer": None}, "misshaped"),
        ({"config": {**CONFIG.to_dict(), "tie_weights": True}, "tokenizer": None}, "out_head.weight of its own"),
        ({"config": CONFIG.to_dict(), "tokenizer": 5}, "tokenizer is 5; expected str or null"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(path, ours, message):
    model = random_model(CONFIG, 8)
    contents = torch_file.state_dict_of(model.state_dict())
    contents.numpygpt = ours
    torch.save(contents, path)
    assert_refused(path, message)
