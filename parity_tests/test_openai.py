"""GPT-2 in OpenAI's files: TensorFlow writes checkpoints and computes, and what is read computes the same."""

import gc
import json
import os
import shutil
import struct
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import numpygpt
import torchgpt
from numpygpt.checks.compare import compare, normwise
from numpygpt.errors import InputError
from numpygpt.formats import openai, openai_download, tensorflow_file, tokenizer_files
from numpygpt.formats.openai import TABLE, assign, load_weights_into_gpt, read_openai_folder
from numpygpt.formats.tensorflow_file import TensorFlowFile, newest_checkpoint
from numpygpt.model.config import PRESETS, GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_of, saved_tokenizer
from numpygpt.sections import Layout
from parity_tests.command import python, run
from parity_tests.openai_graph import CASES
from parity_tests.small_models import assert_equal, copies, norm
from parity_tests.small_models import model_of as random_model
from parity_tests.tolerances import FLOAT64_NORMWISE
from torchgpt.checks.parity import Batch, numpy_step, step_reference

needs_tensorflow = pytest.mark.skipif(
    find_spec("tensorflow") is None, reason="TensorFlow has no release for this version of Python yet"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of checkpoints that TensorFlow wrote, with what it computed beside them."""
    folder = tmp_path_factory.mktemp("written")
    script = Path(__file__).with_name("openai_graph.py")
    done = python("-P", script, folder, env=os.environ | tensorflow_file.SETTINGS | {"TF_USE_LEGACY_KERAS": "1"})
    assert not done.returncode, done.stderr
    return folder


def in_our_names(config, arrays):
    """TensorFlow's gradients by our names, with those of queries, keys and values as one.

    The keys' bias alone has a gradient of zero, except for rounding.
    """
    ours = TABLE.to_ours(config, lambda name: arrays[f"d_{name}"])
    return with_qkv_together({f"d_{name}": array for name, array in ours.items()})


def with_qkv_together(gradients):
    together = dict(gradients)
    for name in [name for name in gradients if ".W_query." in name]:
        parts = [together.pop(name.replace("W_query", other)) for other in ("W_query", "W_key", "W_value")]
        together[name.replace("W_query", "qkv")] = np.concatenate(parts)
    return together


def assert_computes_the_same(model, arrays):
    """Logits, loss and all gradients in float64."""
    expected = {"logits": arrays["logits"], "loss": arrays["loss"], **in_our_names(model.config, arrays)}
    loss, gradients = model.loss_and_grads(arrays["inputs"], arrays["targets"])
    found = {"logits": model(arrays["inputs"]), "loss": np.asarray(loss)}
    found |= with_qkv_together({f"d_{name}": array for name, array in gradients.items()})
    allowed = {name: normwise(array) for name, array in expected.items()}
    compared = compare(found, expected, allowed, dtype=np.float64)
    assert not [comparison for comparison in compared if not comparison.passed]


# What TensorFlow writes and computes


@needs_tensorflow
def test_the_books_functions_load_a_model_of_either_kind_and_it_computes_the_same(written, tmp_path, monkeypatch):
    """Through the door that the book uses, from a folder that is complete."""
    monkeypatch.setattr(openai_download, "SIZES", ("three_heads",))
    monkeypatch.setattr(openai_download, "BEGINNINGS", dict.fromkeys(("checkpoint", "hparams.json")))
    settings, params = openai.download_and_load_gpt2("three_heads", written)
    hparams, _ = CASES["three_heads"]
    assert settings == hparams
    D = hparams["n_embd"]
    assert list(params) == ["blocks", "wte", "wpe", "g", "b"]
    assert {name: array.shape for name, array in params["blocks"][1]["attn"]["c_attn"].items()} == {
        "w": (D, 3 * D),
        "b": (3 * D,),
    }
    arrays = np.load(written / "three_heads.npz")
    config = openai.config_of(settings)
    for tied in (True, False):
        ours = GPTModel(replace(config, tie_weights=tied), dtype=np.float64)
        load_weights_into_gpt(ours, params)
        in_torch = torchgpt.GPTModel(replace(config, tie_weights=tied)).double()
        load_weights_into_gpt(in_torch, params)
        assert_equal({name: tensor.numpy() for name, tensor in in_torch.state_dict().items()}, ours.state_dict())
        if tied:
            assert_computes_the_same(ours, arrays)


@needs_tensorflow
def test_float32_is_within_the_budget(written, tmp_path):
    folder = tmp_path / "with [brackets]*"
    shutil.copytree(written / "single", folder)
    read = openai.read_folder(folder)
    hparams, _ = CASES["single"]
    assert read.config == openai.config_of(hparams)
    assert (read.config.qkv_bias, read.config.tie_weights, read.config.activation) == (True, True, "gelu_tanh")
    assert saved_tokenizer(read) is None
    model = model_of(read)
    assert model.dtype == np.float32
    arrays = np.load(written / "single.npz")
    batch = Batch(arrays["inputs"], arrays["targets"])
    allowed = step_reference(model, batch, probes=16).allowed
    expected = {name: arrays[name] for name in ("logits", "loss")}
    expected |= {f"d_{name}": array for name, array in TABLE.to_ours(model.config, lambda n: arrays[f"d_{n}"]).items()}
    found = {name: array for name, array in numpy_step(model, batch).items() if name in expected}
    compared = compare(found, expected, allowed, dtype=np.float32)
    assert not [comparison for comparison in compared if not comparison.passed]


@needs_tensorflow
def test_the_commands_take_the_folder(written, tmp_path, capsys):
    model = numpygpt.load_model(written / "single")
    assert run("info", "--checkpoint", written / "single") == 0
    assert f"{openai.KIND}, tokenizer none, a model without a training run" in capsys.readouterr().out
    for kind in ("numpygpt", "hf"):
        assert run("convert", written / "single", tmp_path / kind, "--to", kind) == 0
        assert_equal(numpygpt.load_model(tmp_path / kind).state_dict(), model.state_dict())


@needs_tensorflow
def test_an_axis_of_one_position_stays(written):
    """The book's np.squeeze would take it away."""
    settings, params = read_openai_folder(str(written / "one_position"))
    arrays = np.load(written / "one_position.npz")
    model = GPTModel(openai.config_of(settings), dtype=np.float64)
    load_weights_into_gpt(model, params)
    assert norm(model(arrays["inputs"]) - arrays["logits"]) <= FLOAT64_NORMWISE * norm(arrays["logits"])


@needs_tensorflow
def test_damaged_numbers_are_refused(written, tmp_path):
    shutil.copytree(written / "one_position", tmp_path / "folder")
    data = tmp_path / "folder" / "model.ckpt.data-00000-of-00001"
    contents = data.read_bytes()
    data.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
    message = r"does not give model/wte; TensorFlow says: .*hecksum does not match"
    with pytest.raises(InputError, match=message) as refused:
        model_of(openai.read_folder(tmp_path / "folder"))
    assert "\n" not in str(refused.value)


# Names and shapes


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_the_variables_of_every_size_are_known_without_weights(name):
    """As many numbers as the released models have, in the shapes that OpenAI's model.py gives them."""
    config = PRESETS[name]
    V, C, D, L = config.vocab_size, config.context_length, config.emb_dim, config.n_layers
    shapes = TABLE.shapes(config)
    block = {
        "ln_1/g": (D,), "ln_1/b": (D,), "ln_2/g": (D,), "ln_2/b": (D,),
        "attn/c_attn/w": (1, D, 3 * D), "attn/c_attn/b": (3 * D,), "attn/c_proj/w": (1, D, D), "attn/c_proj/b": (D,),
        "mlp/c_fc/w": (1, D, 4 * D), "mlp/c_fc/b": (4 * D,), "mlp/c_proj/w": (1, 4 * D, D), "mlp/c_proj/b": (D,),
    }  # fmt: skip
    expected = {f"model/h{i}/{name}": shape for i in range(L) for name, shape in block.items()}
    expected |= {"model/wte": (V, D), "model/wpe": (C, D), "model/ln_f/g": (D,), "model/ln_f/b": (D,)}
    assert shapes == expected
    hparams = {"n_vocab": V, "n_ctx": C, "n_embd": D, "n_head": config.n_heads, "n_layer": L}
    assert openai.config_of(hparams) == config


def params_of(config, seed=0):
    """`params` as the book has them, with random numbers: by its own way of taking names apart."""
    rng = np.random.default_rng(seed)
    params = {"blocks": [{} for _ in range(config.n_layers)]}
    for name, shape in TABLE.shapes(config).items():
        array = np.squeeze(rng.standard_normal(shape))
        parts = name.split("/")[1:]
        target = params
        if parts[0].startswith("h"):
            target = params["blocks"][int(parts[0][1:])]
        for key in parts[1:-1]:
            target = target.setdefault(key, {})
        target[parts[-1]] = array
    return params


CONFIG = GPTConfig(
    vocab_size=13, context_length=5, emb_dim=8, n_heads=2, n_layers=11, drop_rate=0.1, qkv_bias=True, tie_weights=True
)


#: The same with two blocks, for what needs no more.
FEW = replace(CONFIG, n_layers=2)


def models(config):
    return {"numpy": random_model(config, 3, np.float32), "torch": torchgpt.GPTModel(config)}


def the_books_way(params):
    """The book's load_weights_into_gpt, which knows no table: {our name: array}."""
    ours = {"pos_emb.weight": params["wpe"], "tok_emb.weight": params["wte"], "out_head.weight": params["wte"]}
    for b, block in enumerate(params["blocks"]):
        att, ff = f"trf_blocks.{b}.att", f"trf_blocks.{b}.ff.layers"
        for kind in ("w", "b"):
            full = {"w": "weight", "b": "bias"}[kind]
            q, k, v = np.split(block["attn"]["c_attn"][kind], 3, axis=-1)
            ours |= {f"{att}.W_query.{full}": q.T, f"{att}.W_key.{full}": k.T, f"{att}.W_value.{full}": v.T}
            ours[f"{att}.out_proj.{full}"] = block["attn"]["c_proj"][kind].T
            ours[f"{ff}.0.{full}"] = block["mlp"]["c_fc"][kind].T
            ours[f"{ff}.2.{full}"] = block["mlp"]["c_proj"][kind].T
        for number in (1, 2):
            ours[f"trf_blocks.{b}.norm{number}.scale"] = block[f"ln_{number}"]["g"]
            ours[f"trf_blocks.{b}.norm{number}.shift"] = block[f"ln_{number}"]["b"]
    ours |= {"final_norm.scale": params["g"], "final_norm.shift": params["b"]}
    return ours


def numbers_of(gpt):
    return {name: np.asarray(array) for name, array in gpt.state_dict().items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_the_weights_go_where_the_book_puts_them(kind, tied):
    """More than ten blocks, square matrices, and a dtype of the model's own."""
    gpt, params = models(replace(CONFIG, tie_weights=tied))[kind], params_of(CONFIG)
    before = list(gpt.state_dict().values())
    load_weights_into_gpt(gpt, params)
    expected = the_books_way(params)
    assert_equal(numbers_of(gpt), {name: expected.pop(name).astype(np.float32) for name in numbers_of(gpt)})
    assert not expected
    for now, then in zip(numbers_of(gpt).values(), before, strict=True):
        assert np.shares_memory(now, np.asarray(then)), "copied in place"


def test_the_books_own_class_has_masks_and_no_configuration():
    gpt, params = torchgpt.GPTModel(FEW), params_of(FEW)
    del gpt.config
    for block in gpt.trf_blocks:
        block.att.register_buffer("mask", torch.ones(5, 5).triu(1))
    load_weights_into_gpt(gpt, params)
    numbers, expected = numbers_of(gpt), the_books_way(params)
    assert all(np.array_equal(numbers[name], array.astype(np.float32)) for name, array in expected.items())


def without(params, *path):
    *groups, key = path
    for group in groups:
        params = params[group]
    del params[key]


def with_array(params, array, *path):
    *groups, key = path
    for group in groups:
        params = params[group]
    params[key] = array


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: with_array(p, np.ones((4, 8)), "wpe"), r"model/wpe \(4, 8\), expected \(5, 8\)"),
        (lambda p: with_array(p, np.ones((14, 8)), "wte"), r"model/wte \(14, 8\), expected \(13, 8\)"),
        (lambda p: with_array(p, np.ones(7), "g"), r"model/ln_f/g \(7,\), expected \(8,\)"),
        (
            lambda p: with_array(p, np.ones((24, 8)), "blocks", 1, "attn", "c_attn", "w"),
            r"model/h1/attn/c_attn/w \(1, 24, 8\), expected \(1, 8, 24\)",
        ),
        (lambda p: without(p, "blocks", 1, "mlp", "c_fc", "b"), "missing: model/h1/mlp/c_fc/b"),
        (lambda p: without(p, "wpe"), "missing: model/wpe"),
        (lambda p: without(p, "blocks"), "but there are 4 tensors in all|missing: model/h0"),
        (lambda p: p["blocks"].pop(), "missing: model/h1"),
        (lambda p: p["blocks"].append(p["blocks"][0]), "unexpected: model/h2"),
        (lambda p: with_array(p, np.ones(3), "more"), "unexpected: model/more"),
        (lambda p: with_array(p, np.ones(8, int), "b"), "not floating-point: model/ln_f/b int64"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_changed(kind, change, message):
    gpt, params = models(FEW)[kind], params_of(FEW)
    change(params)
    before = copies(numbers_of(gpt))
    with pytest.raises(InputError, match=message) as refused:
        load_weights_into_gpt(gpt, params)
    assert "\n" not in str(refused.value)
    assert_equal(numbers_of(gpt), before)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_models_that_cannot_take_the_weights_are_refused(kind):
    params = params_of(FEW)
    for changes in ({"qkv_bias": False}, {"bias": False}):
        gpt = models(replace(FEW, **changes))[kind]
        with pytest.raises(InputError, match=r"the model has no biases.*: make it with qkv_bias=True"):
            load_weights_into_gpt(gpt, params)
    with pytest.raises(InputError, match=r"there is no pos_emb.weight"):
        load_weights_into_gpt(models(replace(FEW, position="sinusoidal"))[kind], params)


def test_a_model_with_more_parameters_is_refused():
    gpt = torchgpt.GPTModel(FEW)
    gpt.more = torch.nn.Linear(2, 2)
    before = copies(numbers_of(gpt))
    with pytest.raises(InputError, match=r"more.weight \(2, 2\), its weights none; more.bias"):
        load_weights_into_gpt(gpt, params_of(FEW))
    assert_equal(numbers_of(gpt), before)


def test_assign_is_for_one_array():
    array, right = np.zeros((2, 3), np.float32), np.arange(6.0).reshape(2, 3)
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    for left in (array, parameter):
        assert assign(left, right) is left
        assert np.array_equal(np.asarray(left.data if left is parameter else left), right.astype(np.float32))
        with pytest.raises(InputError, match=r"^wpe has the shape \(2, 3\), but its weights have \(3, 2\)"):
            assign(left, right.T, "wpe")


# Folders without numbers


@pytest.fixture
def folder(tmp_path):
    """The files of a folder, of which TensorFlow would read what comes after all checks."""
    folder = tmp_path / "folder"
    folder.mkdir()
    write_settings(folder)
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n', encoding="utf-8")
    (folder / "model.ckpt.index").write_bytes(b"index")
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(bytes(8 * 10**5))
    return folder


def write_settings(folder, **changes):
    hparams = {"n_vocab": 13, "n_ctx": 5, "n_embd": 8, "n_head": 2, "n_layer": 11} | changes
    (folder / "hparams.json").write_text(json.dumps(hparams), encoding="utf-8")


class Listed:
    """In the place of TensorFlow: the index lists these variables, and none can be read."""

    def __init__(self, layouts):
        self.layouts = layouts

    def __call__(self, folder, name):
        self.path = folder / f"{name}.index"
        return self

    def read(self, name):
        raise AssertionError(f"{name} was read")


FLOAT = "float32"
LAYOUTS = {name: Layout(FLOAT, shape) for name, shape in TABLE.shapes(CONFIG).items()}


def leaves(tree, path=()):
    """Each array of nested dicts and lists, with the keys that lead to it."""
    if isinstance(tree, np.ndarray):
        yield path, tree
        return
    for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from leaves(child, (*path, key))


class Given(Listed):
    """In the place of TensorFlow: it gives these arrays."""

    def __init__(self, arrays):
        super().__init__({name: Layout(array.dtype.name, array.shape) for name, array in arrays.items()})
        self.arrays = arrays

    def read(self, name):
        return self.arrays[name]


def test_params_are_those_of_the_book_with_more_than_ten_blocks_too(folder, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape) for name, shape in TABLE.shapes(CONFIG).items()}
    monkeypatch.setattr(openai, "TensorFlowFile", Given(arrays))
    _, params = read_openai_folder(folder)
    expected = params_of(CONFIG)
    assert_equal(dict(leaves(params)), dict(leaves(expected)))


# The tokenizer


def with_tokenizer(folder, vocabulary):
    """OpenAI's two files of this vocabulary: the same as Hugging Face's, by other names."""
    tokenizer_files.write_tokenizer(folder, vocabulary, 5)
    for ours, openais in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        (folder / ours).rename(folder / openais)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def test_the_tokenizer_is_the_one_in_the_folder(folder, monkeypatch):
    monkeypatch.setattr(openai, "TensorFlowFile", Listed(LAYOUTS))
    with_tokenizer(folder, tokenizer_files.named("gpt2"))
    assert saved_tokenizer(openai.read_folder(folder)) == "gpt2"
    ranks = {bytes([value]): value for value in range(256)} | {b"ab": 256}
    with_tokenizer(folder, tokenizer_files.Vocabulary(ranks, {"<|endoftext|>": 257}))
    read = openai.read_folder(folder)
    assert saved_tokenizer(read) is None
    assert read.own_tokenizer().encode("ab b") == [256, 32, 98]


@pytest.mark.parametrize(("n_vocab", "tokenizer"), [(50257, "gpt2"), (13, None)])
def test_without_its_files_it_is_gpt2s_if_the_size_fits(folder, monkeypatch, n_vocab, tokenizer):
    write_settings(folder, n_vocab=n_vocab)
    monkeypatch.setattr(openai, "TensorFlowFile", Listed(LAYOUTS | {"model/wte": Layout(FLOAT, (n_vocab, 8))}))
    read = openai.read_folder(folder)
    assert saved_tokenizer(read) == tokenizer
    taken = ("there are no files of a tokenizer: GPT-2's is taken, whose size fits",)
    assert read.notes == (taken if tokenizer else ())


# Folders that anybody may have made


@pytest.fixture
def never_started(monkeypatch):
    def start(*arguments):
        raise AssertionError("TensorFlow was started")

    monkeypatch.setattr(tensorflow_file, "_start", start)


def assert_refused(folder, message):
    for read in (read_openai_folder, openai.read_folder):
        with pytest.raises(InputError, match=message) as refused:
            read(folder)
        assert str(folder) in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("never_started")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd", "names '/etc/passwd', and nothing outside of its folder is read"),
        ("../model.ckpt", "names '../model.ckpt', and nothing outside"),
        ("sub/model.ckpt", "names 'sub/model.ckpt', and nothing outside"),
        ("./model.ckpt", "names './model.ckpt', and nothing outside"),
        ("..", "names '..', and nothing outside|no such file|No such file"),
        ("model.*", r"names 'model.\*', and nothing outside"),
        ("", "names '', and nothing outside"),
        ("another", "cannot read the index of the checkpoint .*another.index: No such file or directory"),
    ],
)
def test_the_checkpoint_is_a_file_in_the_folder(folder, name, message):
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n', encoding="utf-8")
    assert_refused(folder, message)


@pytest.mark.usefixtures("never_started")
@pytest.mark.parametrize("contents", [b"", b"\xff", b"model_checkpoint_path: x", b'all_model_checkpoint_paths: "x"'])
def test_a_state_that_names_no_checkpoint_is_refused(folder, contents):
    (folder / "checkpoint").write_bytes(contents)
    assert_refused(folder, "does not name a checkpoint; expected model_checkpoint_path")


def test_the_path_may_be_that_of_the_folder(folder):
    """TensorFlow's Saver writes it so, unless it is told otherwise."""
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{folder}/model.ckpt"\n', encoding="utf-8")
    assert newest_checkpoint(folder) == "model.ckpt"


@pytest.mark.usefixtures("never_started")
@pytest.mark.parametrize("name", ["hparams.json", "checkpoint", "model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_links_out_of_the_folder_are_not_followed(folder, name):
    target = folder.parent / name
    (folder / name).rename(target)
    (folder / name).symlink_to(target)
    assert_refused(folder, "is a link out of its folder, to .*, and is not followed")


@pytest.mark.usefixtures("never_started")
@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("hparams.json", 2**16, "has more than 65536 bytes"),
        ("checkpoint", 2**12, "has more than 4096 bytes"),
        ("model.ckpt.index", 2**22, "has more than 4194304 bytes"),
    ],
)
def test_files_that_are_too_large_for_what_they_are_are_refused(folder, name, size, message):
    with (folder / name).open("ab") as file:
        file.truncate(size + 1)
    assert_refused(folder, message)


@pytest.mark.usefixtures("never_started")
def test_pipes_are_refused(folder):
    for name in ("model.ckpt.data-00001-of-00002", "model.ckpt.index", "checkpoint", "hparams.json"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        assert_refused(folder, "is no regular file|it is a pipe or a device")


@pytest.mark.usefixtures("never_started")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_vocab": 10**12}, "vocab_size is 1000000000000; expected at most"),
        ({"n_layer": -1}, "n_layers is -1; expected a positive integer"),
        ({"n_embd": "8"}, "n_embd is '8'; expected int"),
        ({"n_head": True}, "n_head is True; expected int"),
        ({"n_head": 3}, "emb_dim 8 is not divisible by n_heads 3"),
        ({"n_ctx": 1.5}, "n_ctx is 1.5; expected int"),
        ({"n_ctx": None}, "n_ctx is None; expected int"),
    ],
    ids=repr,
)
def test_settings_that_no_model_has_are_refused(folder, changes, message):
    write_settings(folder, **changes)
    assert_refused(folder, message)


@pytest.mark.usefixtures("never_started")
@pytest.mark.parametrize(
    ("contents", "message"),
    [("[]", "holds a list; expected a JSON object"), ("{", "is no JSON"), ("{}", "n_vocab is missing")],
)
def test_settings_that_are_no_settings_are_refused(folder, contents, message):
    (folder / "hparams.json").write_text(contents, encoding="utf-8")
    assert_refused(folder, message)


@pytest.mark.parametrize("name", ["hparams.json", "checkpoint", "model.ckpt.index"])
@pytest.mark.usefixtures("never_started")
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    assert_refused(folder, f"cannot read the .*{name}: No such file or directory")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model/wpe": None}, "missing: model/wpe"),
        ({"model/more": Layout(FLOAT, (2,))}, "unexpected: model/more"),
        ({"model/h0/attn/c_attn/w": Layout(FLOAT, (1, 24, 8))}, r"\(1, 24, 8\), expected \(1, 8, 24\)"),
        ({"model/h0/attn/c_attn/w": Layout(FLOAT, (8, 24))}, r"\(8, 24\), expected \(1, 8, 24\)"),
        ({"model/wte": Layout("int64", (13, 8))}, "not floating-point: model/wte int64"),
        ({"model/wte": Layout("string", (13, 8))}, "not floating-point: model/wte string"),
        ({"model/wte": Layout("bfloat16", (13, 8))}, "not floating-point: model/wte bfloat16"),
    ],
)
def test_variables_that_do_not_fit_the_settings_are_refused(folder, monkeypatch, change, message):
    listed = Listed({name: layout for name, layout in (LAYOUTS | change).items() if layout is not None})
    monkeypatch.setattr(openai, "TensorFlowFile", listed)
    assert_refused(folder, message)


@pytest.mark.parametrize("changes", [{"n_layer": 2**31 - 1}, {"n_vocab": 2**31 - 1}, {"n_ctx": 2**31 - 1}], ids=repr)
def test_settings_of_absurd_sizes_take_no_memory(folder, monkeypatch, changes):
    write_settings(folder, **changes)
    monkeypatch.setattr(openai, "TensorFlowFile", Listed(LAYOUTS))
    assert_refused(folder, "2147483647")


def test_a_model_beyond_the_machines_memory_is_refused(folder, monkeypatch):
    monkeypatch.setattr(openai, "TensorFlowFile", Listed(LAYOUTS))
    monkeypatch.setattr("numpygpt.model.sizes.machine_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"the model needs at least .* GiB of memory"):
        read_openai_folder(folder)
    with pytest.raises(InputError, match=r"the model needs at least .* GiB of memory"):
        model_of(openai.read_folder(folder))


# The index, which TensorFlow reads


def crc32c(data):
    """The masked CRC-32C that TensorFlow puts behind each block (RFC 3720, appendix B.4)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
    value ^= 0xFFFFFFFF
    return (value >> 15 | value << 17) + 0xA282EAD8 & 0xFFFFFFFF


def varint(number):
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


def block(*entries):
    """A block of a table (LevelDB's format): the entries, where each begins, how many there are; not compressed."""
    data, begins = b"", []
    for key, value in entries:
        begins.append(len(data))
        data += b"\0" + varint(len(key)) + varint(len(value)) + key + value
    contents = data + struct.pack(f"<{len(begins) + 1}I", *begins, len(begins))
    return contents + b"\0" + struct.pack("<I", crc32c(contents + b"\0"))


def index_of(dims, size=24):
    """The index of a checkpoint with one variable of float32 with these axes."""
    axes = b"".join(b"\x12" + varint(len(axis)) + axis for axis in (b"\x08" + varint(dim % 2**64) for dim in dims))
    entry = b"\x08\x01" + b"\x12" + varint(len(axes)) + axes + b"\x28" + varint(size)
    header = b"\x08\x01\x1a\x02\x08\x01"
    first = block((b"", header), (b"model/wte", entry))
    nothing = block()
    places = block((b"n", varint(0) + varint(len(first) - 5)))
    footer = varint(len(first)) + varint(len(nothing) - 5)
    footer += varint(len(first) + len(nothing)) + varint(len(places) - 5)
    return first + nothing + places + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


@needs_tensorflow
def test_an_index_that_ends_tensorflow_is_one_line(folder):
    """TensorFlow ends its process where an axis has a negative length."""
    (folder / "model.ckpt.index").write_bytes(index_of([-5, 3]))
    message = r"cannot be read; TensorFlow says: Check failed: size >= 0 .*; fetch"
    with pytest.raises(InputError, match=message) as refused:
        TensorFlowFile(folder, "model.ckpt")
    assert "\n" not in str(refused.value)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program in the place of TensorFlow's, of these lines of Python."""

    def put(lines):
        path = tmp_path / "program.py"
        path.write_text(f"import sys, os\n{lines}\n", encoding="utf-8")
        monkeypatch.setattr(tensorflow_file, "PROGRAM", path)
        monkeypatch.setattr(tensorflow_file, "find_spec", lambda name: name)

    return put


LISTED = """print('{"x": ["float32", [2, 3]]}', flush=True)"""


@pytest.mark.parametrize("shape", ["[1099511627776]", "[100001, 2]", "[4611686018427387904, 4611686018427387904]"])
def test_variables_larger_than_the_data_are_refused_before_one_is_read(folder, program, shape):
    program(LISTED.replace("[2, 3]", shape))
    with pytest.raises(InputError, match=r"is truncated: its variables have \d+ bytes, and its data files 800000"):
        TensorFlowFile(folder, "model.ckpt")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "cannot be read; TensorFlow says: nothing; it ended with status 0"),
        ("sys.exit('its\\n\\nreason')", "cannot be read; TensorFlow says: reason; fetch"),
        ("os.abort()", "cannot be read; TensorFlow says: nothing; it ended with status -6"),
        ("sys.stdout.write('[' * 2**23)", "cannot be read"),
        (LISTED, "does not give x; TensorFlow says: nothing; it ended with status 0"),
        (f"{LISTED}\ninput(); sys.stdout.buffer.write(bytes(23))", "does not give x"),
        (f"{LISTED}\ninput(); 1 / 0", "does not give x; TensorFlow says: ZeroDivisionError: division by zero"),
    ],
)
def test_a_program_that_fails_is_one_line(folder, program, lines, message):
    program(lines)
    with pytest.raises(InputError, match=message) as refused:
        TensorFlowFile(folder, "model.ckpt").read("x")
    assert "\n" not in str(refused.value)


def test_a_program_that_has_ended_answers_no_more(folder, program):
    program(LISTED)
    file = TensorFlowFile(folder, "model.ckpt")
    for _ in range(2):
        with pytest.raises(InputError, match="does not give x"):
            file.read("x")


def test_the_program_ends_when_nobody_needs_it(folder, program):
    program(f"{LISTED}\nfor line in sys.stdin: sys.stdout.buffer.write(bytes(24)), sys.stdout.flush()")
    file = TensorFlowFile(folder, "model.ckpt")
    assert np.array_equal(file.read("x"), np.zeros((2, 3), np.float32))
    process = file._process
    assert process.poll() is None
    del file
    gc.collect()
    assert process.poll() is not None


def test_without_tensorflow_there_is_the_line_that_installs_it(folder, monkeypatch):
    monkeypatch.setattr(tensorflow_file, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^TensorFlow is not installed, .*: pip install 'numpygpt\[tf\]'$"):
        read_openai_folder(folder)


def test_the_books_functions_are_in_both_packages():
    for name in ("assign", "download_and_load_gpt2", "load_weights_into_gpt"):
        assert getattr(numpygpt, name) is getattr(torchgpt, name) is getattr(openai, name)


def test_tensorflow_is_imported_by_nobody_but_its_own_process():
    code = "import sys, numpygpt, numpygpt.formats.openai; print(*sys.modules)"
    imported = python("-c", code).stdout.split()
    assert "numpygpt.formats.openai" in imported
    assert not {"tensorflow", "torch", "pooch", "requests", "tqdm"} & set(imported)
