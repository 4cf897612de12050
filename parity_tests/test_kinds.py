"""Kinds of files that hold a model: which is which, and that the commands take them all."""

import json
import re
import shutil
import sys
import tracemalloc

import numpy as np
import pytest
import torch

import numpygpt
from numpygpt.errors import InputError
from numpygpt.formats import book, hugging_face, nanogpt
from numpygpt.formats.checkpoint import FILE_NAME, write_checkpoint
from numpygpt.formats.kinds import FOLDERS, read_model
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_section, saved_config, saved_tokenizer
from parity_tests.command import files, run
from parity_tests.small_models import assert_equal, model_of
from parity_tests.test_bad_input import refused
from torchgpt.checks.parity import numpy_step

CONFIG = GPTConfig(
    vocab_size=256,
    context_length=8,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.1,
    qkv_bias=True,
    tie_weights=True,
    activation="gelu_erf",
)
#: What a model may have otherwise, and the formats that can hold it.
MODELS = {
    "as nanoGPT's": ({}, ("numpygpt", "hf", "nanogpt", "pth")),
    "no bias": ({"qkv_bias": False, "bias": False}, ("numpygpt", "hf", "nanogpt", "pth")),
    "the book's": (
        {"qkv_bias": False, "tie_weights": False, "activation": "gelu_tanh"},
        ("numpygpt", "hf", "pth"),
    ),
    "sinusoidal": ({"position": "sinusoidal", "norm_eps": 0.1, "drop_rate": 0.0}, ("numpygpt", "hf", "pth")),
}
DTYPES = [np.float32, np.float64]


def saved(folder, changes, dtype=np.float32):
    """A checkpoint of ours, and its model."""
    model = model_of(GPTConfig.of({**CONFIG.to_dict(), **changes}), seed=1, dtype=dtype)
    write_checkpoint(folder, {"model": model_section(model, "bytes")})
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a checkpoint of ours in `ours`."""
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "ours", {})
    return tmp_path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the same model in files of each kind that `convert` writes."""
    folder = tmp_path_factory.mktemp("written")
    saved(folder / "ours", {})
    for kind, target in {"hf": "hf", "nanogpt": "nanogpt", "pth": "model.pth"}.items():
        assert run("convert", folder / "ours", folder / target, "--to", kind) == 0
    return folder


# convert


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("changes", "kind"),
    [(changes, kind) for changes, kinds in MODELS.values() for kind in kinds],
    ids=[f"{name}, {kind}" for name, (_, kinds) in MODELS.items() for kind in kinds],
)
def test_there_and_back_is_the_same_bit_for_bit(tmp_path, changes, kind, dtype):
    """To the byte of the file, except that nanoGPT's has no tokenizer."""
    model = saved(tmp_path / "ours", changes, dtype)
    other = tmp_path / "other.pth"
    assert run("convert", tmp_path / "ours", other, "--to", kind) == 0
    assert run("convert", other, tmp_path / "again", "--to", "numpygpt") == 0
    again = read_model(tmp_path / "again")
    assert saved_config(again) == model.config
    assert_equal(again.arrays("model"), model.named_parameters())
    if kind != "nanogpt":
        assert files(tmp_path / "again") == files(tmp_path / "ours")


def test_convert_says_what_it_read_and_wrote(capsys, folder):
    assert run("convert", "ours", "hf", "--to", "hf") == 0
    first, facts, wrote, then = capsys.readouterr().out.splitlines()
    assert first == f"ours/{FILE_NAME}: tokenizer bytes"
    assert "tie_weights True" in facts
    assert "activation gelu_erf" in facts
    assert "qkv_bias True" in facts
    assert "norm_eps 1e-05" in facts
    assert "context_length 8" in facts
    assert wrote == "wrote hf: 36 arrays of float32, tokenizer bytes"
    assert then.startswith("let it write: ")
    assert run("convert", "hf", "again", "--to", "numpygpt", "--dtype", "float64") == 0
    first, *_, wrote, then = capsys.readouterr().out.splitlines()
    assert first == "hf/model.safetensors: Hugging Face, tokenizer bytes"
    assert wrote == "wrote again: 36 arrays of float64, tokenizer bytes"
    assert then == 'let it write: numpygpt generate --checkpoint again --prompt "Every effort moves you"'
    assert numpygpt.load_model("again").dtype == np.float64


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("numpygpt", "--checkpoint 'Bob'\"'\"'s model' --prompt"),
        ("hf", 'pipeline("text-generation", "Bob\'s model")'),
        ("nanogpt", "--out_dir='Bob'\"'\"'s model', in"),
        ("pth", 'torch.load("Bob\'s model", weights_only=True)'),
    ],
)
@pytest.mark.usefixtures("folder")
def test_the_next_step_takes_any_name(capsys, kind, expected):
    assert run("convert", "ours", "Bob's model", "--to", kind) == 0
    assert expected in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("kind", ["numpygpt", "hf", "nanogpt", "pth"])
def test_a_target_that_is_there_is_kept_unless_told(capsys, folder, kind):
    assert run("convert", "ours", "target", "--to", kind) == 0
    line = refused(capsys, folder, "convert", "ours", "target", "--to", kind)
    assert "--overwrite, or name another" in line
    saved(folder / "ours", {"n_layers": 1})
    assert run("convert", "ours", "target", "--to", kind, "--overwrite") == 0
    if kind != "pth":
        assert saved_config(read_model("target")).n_layers == 1


@pytest.mark.parametrize(("there", "kind"), [("hf", "numpygpt"), ("numpygpt", "nanogpt"), ("nanogpt", "numpygpt")])
def test_a_folder_never_gets_models_of_two_kinds(capsys, folder, there, kind):
    assert run("convert", "ours", "target", "--to", there) == 0
    line = refused(capsys, folder, "convert", "ours", "target", "--to", kind, "--overwrite")
    assert "target holds a model of another kind" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ours", "ours", "--to", "numpygpt", "--overwrite"), "the target ours is the source itself; name another"),
        (
            ("ours/checkpoint.safetensors", "ours", "--to", "numpygpt", "--overwrite"),
            "the target ours is the source itself; name another",
        ),
        (("ours", "new", "--to", "onnx"), "argument --to: invalid choice: 'onnx'"),
        (("ours", "new"), "the following arguments are required: --to"),
        (("nowhere", "new", "--to", "hf"), "there is no checkpoint nowhere"),
        (("ours", "ours/checkpoint.safetensors/new", "--to", "hf"), "cannot write the folder .*: Not a directory"),
        (("ours", "n" * 300, "--to", "pth"), "cannot write n.*: File name too long"),
        (("ours", "ours", "--to", "hf", "--overwrite"), r"ours holds other files, such as checkpoint\.safetensors"),
    ],
)
def test_what_convert_refuses(capsys, folder, arguments, message):
    assert re.search(message, refused(capsys, folder, "convert", *arguments))


def test_nanogpt_holds_no_model_of_another_kind(capsys, folder):
    saved(folder / "untied", {"tie_weights": False})
    line = refused(capsys, folder, "convert", "untied", "new", "--to", "nanogpt")
    assert "nanoGPT cannot compute this model, which has tie_weights False, not True" in line


@pytest.mark.parametrize("kind", ["nanogpt", "pth"])
def test_without_pytorch_its_files_are_not_begun(capsys, folder, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "torch", None)
    line = refused(capsys, folder, "convert", "ours", "new", "--to", kind)
    assert "PyTorch is not installed" in line
    assert "pip install" in line


def test_the_book_does_not_tell_the_heads(capsys, folder):
    model = saved(folder / "book", {"qkv_bias": False, "tie_weights": False, "activation": "gelu_tanh"})
    torch.save({name: torch.from_numpy(array) for name, array in model.state_dict().items()}, folder / "book.pth")
    line = refused(capsys, folder, "convert", "book.pth", "again", "--to", "numpygpt")
    assert "it does not tell the number of heads" in line
    assert run("convert", "book.pth", "again", "--to", "numpygpt", "--n-heads", 3) == 0
    assert saved_config(read_model("again")) == model.config


# The commands take any kind


@pytest.mark.parametrize("name", ["hf", "model.pth"])
def test_info_and_generate_take_what_other_programs_wrote(capsys, written, name):
    path = written / name
    assert run("info", "--checkpoint", path) == 0
    printed = capsys.readouterr().out
    assert "tokenizer bytes, a model without a training run" in printed
    assert "activation gelu_erf" in printed
    sampled = []
    for checkpoint in (path, written / "ours"):
        arguments = ("--prompt", "The", "--max-new-tokens", 4, "--seed", 1)
        assert run("generate", "--checkpoint", checkpoint, *arguments) == 0
        sampled.append(capsys.readouterr().out)
    assert sampled[0] == sampled[1]


def test_pictures_of_what_another_program_wrote(written, tmp_path):
    options = ("--checkpoint", written / "hf", "--out", tmp_path / "picture.png")
    for command in (("attention", "--prompt", "The", "--layer", 0), ("embeddings", "--tokens", "a", "b", "c")):
        assert run(*command, *options) == 0
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "picture.png").unlink()


def test_a_tokenizer_with_more_tokens_than_the_model(capsys, written, tmp_path):
    shutil.copytree(written / "hf", tmp_path / "hf")
    config = GPTConfig.of({**CONFIG.to_dict(), "vocab_size": 200})
    weights = model_of(config, 1, np.float32).named_parameters()
    hugging_face.write_folder(tmp_path / "hf", config, weights, "bytes", overwrite=True)
    line = refused(capsys, tmp_path, "generate", "--checkpoint", tmp_path / "hf", "--prompt", "x")
    assert "has 256 tokens, but the model's vocab_size is 200; expected at least as many" in line


def test_a_model_without_a_tokenizer(capsys, written, tmp_path):
    line = refused(capsys, tmp_path, "generate", "--checkpoint", written / "nanogpt", "--prompt", "x")
    assert "there is no tokenizer beside" in line
    assert run("info", "--checkpoint", written / "nanogpt") == 0
    assert "nanoGPT, tokenizer none" in capsys.readouterr().out


def test_a_tokenizer_of_its_own(capsys, written, tmp_path):
    """A vocabulary of bytes in another order: no text that is right comes out of ours."""
    folder = tmp_path / "hf"
    shutil.copytree(written / "hf", folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: 255 - number for token, number in vocab.items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    source = read_model(folder)
    assert saved_tokenizer(source) is None
    assert source.encoding().encode("The") == [255 - value for value in b"The"]
    assert run("convert", folder, tmp_path / "ours", "--to", "numpygpt") == 0
    assert f"was not written: keep the files of {folder}" in capsys.readouterr().out
    assert saved_tokenizer(read_model(tmp_path / "ours")) is None
    assert run("generate", "--checkpoint", folder, "--prompt", "The", "--max-new-tokens", 3) == 0
    assert run("info", "--checkpoint", folder) == 0
    assert "tokenizer of its own" in capsys.readouterr().out


# Which kind


def test_a_folder_of_no_kind(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="holds no model of a known kind; expected one of these files: ") as refusal:
        numpygpt.load_model(tmp_path)
    for kind in FOLDERS:
        assert f"{kind.file} ({kind.name})" in str(refusal.value)
    refused(capsys, tmp_path, "info", "--checkpoint", tmp_path)


@pytest.mark.parametrize("two", [(0, 1), (1, 2), (2, 3), (0, 3)])
def test_a_folder_of_two_kinds(tmp_path, two):
    for number in two:
        (tmp_path / FOLDERS[number].file).touch()
    with pytest.raises(InputError, match=r"holds models of 2 kinds, .* and .*; keep one of them in it"):
        read_model(tmp_path)


@pytest.mark.parametrize("name", [hugging_face.CONFIG, hugging_face.WEIGHTS])
def test_a_part_of_a_folder(written, name):
    with pytest.raises(InputError, match=f"is one of several files of a model; name its folder, {written}/hf"):
        read_model(written / "hf" / name)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.pth", "n" * 300, "\0"])
def test_what_is_not_there(tmp_path, name):
    with pytest.raises(InputError):
        read_model(tmp_path / name)


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def fail(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", fail)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        read_model(tmp_path)


def test_the_files_of_nanogpt_and_of_the_book_are_told_apart(written):
    assert read_model(written / "nanogpt" / nanogpt.FILE_NAME).kind == nanogpt.KIND
    assert read_model(written / "model.pth").kind == book.KIND


def test_parity_checks_the_weights_of_any_kind(capsys, written, monkeypatch):
    checked = []

    def step(model, batch):
        checked.append(model)
        return numpy_step(model, batch)

    monkeypatch.setattr("torchgpt.checks.parity.numpy_step", step)
    assert run("parity", "--checkpoint", written / "hf", "--batch-size", 1, "--tokens", 3) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{written}/hf/model.safetensors: Hugging Face, tokenizer bytes\n")
    assert re.search(r"all \d+ tensors agree", printed)
    assert_equal(checked[0].named_parameters(), numpygpt.load_model(written / "ours").named_parameters())


def test_parity_of_a_checkpoint_takes_no_sizes(capsys, written, tmp_path):
    line = refused(capsys, tmp_path, "parity", "--checkpoint", written / "hf", "--n-layers", 2)
    assert "the model of --checkpoint has its own sizes; leave out --n-layers" in line


@pytest.mark.parametrize("kind", ["numpygpt", "hf", "pth"])
def test_loading_takes_the_model_and_little_more(tmp_path, kind):
    """One tensor at a time: what is above the model stays below its two largest tensors, far less than a second one."""
    config = GPTConfig.of({**CONFIG.to_dict(), "vocab_size": 2000, "emb_dim": 120, "n_layers": 6, "tie_weights": False})
    model = GPTModel(config)
    write_checkpoint(tmp_path / "ours", {"model": model_section(model)})
    assert run("convert", tmp_path / "ours", tmp_path / "other.pth", "--to", kind) == 0
    sizes = sorted(array.nbytes for array in model.state_dict().values())
    tracemalloc.start()
    try:
        loaded = numpygpt.load_model(tmp_path / "other.pth")
        above = tracemalloc.get_traced_memory()[1] - sum(sizes)
    finally:
        tracemalloc.stop()
    assert above < sum(sizes[-2:]) < 0.5 * sum(sizes)
    assert_equal(loaded.state_dict(), model.state_dict())
