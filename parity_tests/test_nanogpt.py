"""nanoGPT's ckpt.pt: the logits and gradients of its model are ours, in both directions. What it lacks is refused."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from numpygpt.checks.compare import compare, normwise
from numpygpt.errors import InputError
from numpygpt.formats import nanogpt, torch_file
from numpygpt.formats.nanogpt import TABLE
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import model_of, saved_tokenizer
from parity_tests.nanogpt_model import NanoGPT, NanoGPTConfig, sample_py, train_py
from parity_tests.small_models import assert_equal, ids_of
from parity_tests.small_models import model_of as random_model

#: Widths that no transposed matrix fits, but for the square one of attention, which the names tell apart.
SIZES = {"block_size": 5, "vocab_size": 11, "n_layer": 2, "n_head": 3, "n_embd": 12}
CONFIG = GPTConfig(
    vocab_size=11,
    context_length=5,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.1,
    qkv_bias=True,
    tie_weights=True,
    activation="gelu_erf",
)


def nanogpt_model(seed=0, **options):
    torch.manual_seed(seed)
    with_mask = options.pop("with_mask", False)
    config = NanoGPTConfig(**{**SIZES, **options})
    model = NanoGPT(config, with_mask=with_mask).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model, config


def saved(folder, contents):
    torch.save(contents, folder / "ckpt.pt")
    return folder / "ckpt.pt"


def opened(path):
    return nanogpt.model_in(path, torch_file.load(path))


def in_our_names(config, tensors):
    return TABLE.to_ours(config, lambda name: tensors[name].detach().numpy())


def with_qkv_together(gradients):
    """Queries', keys' and values' gradients as one: the keys' bias alone has a gradient of zero, but for rounding."""
    together = dict(gradients)
    for name in [name for name in gradients if ".W_query." in name]:
        parts = [together.pop(name.replace("W_query", other)) for other in ("W_query", "W_key", "W_value")]
        together[name.replace("W_query", "qkv")] = np.concatenate(parts)
    return together


def assert_computes_the_same(ours, theirs):
    """Logits, loss and all gradients."""
    inputs, targets = ids_of(ours.config, 1), ids_of(ours.config, 2)
    logits = theirs(torch.from_numpy(inputs))
    loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    theirs.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = with_qkv_together(in_our_names(ours.config, gradients))
    expected |= {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    our_loss, gradients = ours.loss_and_grads(inputs, targets)
    found = {**with_qkv_together(gradients), "logits": ours(inputs), "loss": np.asarray(our_loss)}
    allowed = {name: normwise(array) for name, array in expected.items()}
    compared = compare(found, expected, allowed, dtype=np.float64)
    assert not [comparison for comparison in compared if not comparison.passed]


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_its_models_are_read_and_compute_the_same(tmp_path, bias, prefix):
    theirs, config = nanogpt_model(bias=bias, with_mask=not prefix)
    contents = train_py(theirs, config)
    contents["model"] = {prefix + name: tensor for name, tensor in contents["model"].items()}
    ours = model_of(opened(saved(tmp_path, contents)))
    assert ours.config == replace(CONFIG, drop_rate=0.0, qkv_bias=bias, bias=bias)
    assert_computes_the_same(ours, theirs)


@pytest.mark.parametrize("bias", [True, False])
def test_sample_py_takes_what_is_written_and_computes_the_same(tmp_path, bias):
    ours = random_model(replace(CONFIG, qkv_bias=bias, bias=bias), 3)
    nanogpt.write_file(tmp_path / "ckpt.pt", ours.config, ours.named_parameters())
    assert_computes_the_same(ours, sample_py(tmp_path / "ckpt.pt"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ours_to_theirs_to_ours_is_the_same_bit_for_bit(tmp_path, dtype):
    ours = random_model(CONFIG, 4, dtype)
    nanogpt.write_file(tmp_path / "ckpt.pt", CONFIG, ours.named_parameters())
    read = nanogpt.read_folder(tmp_path)
    assert model_of(read).config == CONFIG
    assert_equal(model_of(read).state_dict(), ours.state_dict())


def test_the_tied_weights_are_written_once(tmp_path):
    ours = random_model(CONFIG, 4)
    nanogpt.write_file(tmp_path / "ckpt.pt", CONFIG, ours.named_parameters())
    written = torch_file.load(tmp_path / "ckpt.pt")["model"]
    assert written["lm_head.weight"].data_ptr() == written["transformer.wte.weight"].data_ptr()


def test_the_names_and_shapes_of_every_size_are_known_without_weights():
    """Those of the largest GPT-2 in nanoGPT, by its own constructor, which takes no memory on the device "meta"."""
    theirs = NanoGPTConfig(n_layer=48, n_head=25, n_embd=1600, vocab_size=50257)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in NanoGPT(theirs).state_dict().items()}
    assert TABLE.shapes(nanogpt.config_of(asdict(theirs))) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie_weights": False}, "tie_weights False, not True"),
        ({"activation": "gelu_tanh"}, "activation 'gelu_tanh', not 'gelu_erf'"),
        ({"norm_eps": 1e-6}, "norm_eps 1e-06, not 1e-05"),
        ({"position": "sinusoidal"}, "position 'sinusoidal', not 'learned'"),
        ({"qkv_bias": False}, "qkv_bias False and bias True, not both the same"),
        ({"bias": False}, "qkv_bias True and bias False, not both the same"),
    ],
    ids=repr,
)
def test_what_it_cannot_compute_is_not_written(tmp_path, changes, message):
    model = random_model(replace(CONFIG, **changes), 5)
    with pytest.raises(InputError, match=f"^nanoGPT cannot compute this model, which has {message}: write it in"):
        nanogpt.write_file(tmp_path / "ckpt.pt", model.config, model.named_parameters())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("vocab_size", "tokenizer", "note"),
    [
        (50257, "gpt2", "the file names no tokenizer: GPT-2's is taken, whose size fits"),
        (50304, "gpt2", "of its 50304 tokens, those from 50257 on only fill the size up"),
        (65, None, "the file names no tokenizer, and 65 tokens are not GPT-2's"),
    ],
)
def test_the_tokenizer_is_gpt2s_if_the_size_fits(tmp_path, vocab_size, tokenizer, note):
    theirs, config = nanogpt_model(n_embd=2, n_head=1, n_layer=1, vocab_size=vocab_size)
    path = saved(tmp_path, train_py(theirs, config, optimizer=None))
    assert saved_tokenizer(opened(path)) == tokenizer
    assert note in opened(path).notes


def test_a_vocabulary_of_characters_is_a_pickle_and_is_not_read(tmp_path):
    theirs, config = nanogpt_model(n_embd=2, n_head=1, n_layer=1, vocab_size=50257)
    path = saved(tmp_path, train_py(theirs, config, optimizer=None))
    (tmp_path / "meta.pkl").write_bytes(b"cos\nabort\n(tR.")  # os.abort(), which would end this process
    assert saved_tokenizer(opened(path)) is None
    assert any("meta.pkl beside it has the tokenizer" in note for note in opened(path).notes)


def test_numbers_of_16_bits_are_read_as_float32(tmp_path):
    theirs, config = nanogpt_model()
    path = saved(tmp_path, train_py(theirs.to(torch.bfloat16), config, optimizer=None))
    model = model_of(opened(path))
    assert model.dtype == np.float32
    assert np.array_equal(model.state_dict()["out_head.weight"], theirs.lm_head.weight.detach().float().numpy())
    assert "weights of bfloat16 are read as float32" in opened(path).notes


def without(name):
    return lambda contents: contents["model"].pop(name)


def with_weights(name, *shape):
    return lambda contents: contents["model"].update({name: torch.ones(*shape, dtype=torch.float64)})


def with_arguments(**arguments):
    return lambda contents: contents["model_args"].update(arguments)


def with_entry(name, value):
    return lambda contents: contents.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("transformer.h.1.mlp.c_fc.bias"), "missing: transformer.h.1.mlp.c_fc.bias"),
        (with_weights("transformer.extra", 2), "unexpected: transformer.extra"),
        (with_weights("transformer.h.0.mlp.c_fc.weight", 12, 48), r"c_fc.weight \(12, 48\), expected \(48, 12\)"),
        (with_weights("lm_head.weight", 11, 12), "it has a out_head.weight of its own"),
        (with_arguments(bias=False), "it has a trf_blocks.0.norm1.shift of its own"),
        (with_arguments(n_layer=2**31 - 1), "the model has 2147483647 blocks, but there are"),
        (with_arguments(vocab_size=None), "vocab_size is None; expected int"),
        (with_arguments(n_head=5), "emb_dim 12 is not divisible by n_heads 5"),
        (with_entry("model", [1]), "model is a list; expected a dict"),
        (with_entry("model_args", {1: 2}), "model_args has the key 1; expected texts"),
        (with_entry("model_args", {}), "vocab_size is missing; expected int"),
        (with_entry("model", {"transformer.wte.weight": 3.0}), "transformer.wte.weight is a float; expected a tensor"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, message):
    theirs, config = nanogpt_model()
    contents = train_py(theirs, config, optimizer=None)
    change(contents)
    with pytest.raises(InputError, match=message) as refused:
        opened(saved(tmp_path, contents))
    assert str(tmp_path / "ckpt.pt") in str(refused.value)
    assert "\n" not in str(refused.value)
