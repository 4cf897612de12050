"""Commands on checkpoints that somebody made: what does not fit gets one line, and extreme options have a meaning."""

import re

import numpy as np
import pytest

from numpygpt import GPTConfig, GPTModel
from numpygpt.formats import checkpoint as module
from numpygpt.formats.checkpoint import write_checkpoint
from numpygpt.model.saving import model_section
from numpygpt.model.sizes import scoring_bytes
from numpygpt.sections import Section
from numpygpt.training.options import Options
from numpygpt.training.run import Evaluation
from parity_tests.command import files, run

CONFIG = GPTConfig(vocab_size=256, context_length=6, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.0, qkv_bias=False)
COMMANDS = {"generate": ("--prompt", "x"), "attention": ("--prompt", "x"), "embeddings": (), "info": ()}


def save(folder, model=None, tokenizer="bytes", **run_values):
    """Save a checkpoint, with a section "run" if there are values for it."""
    sections = {"model": model_section(model or GPTModel(CONFIG), tokenizer)}
    if run_values:
        sections["run"] = Section(run_values, {})
    return write_checkpoint(folder, sections).parent


def refused(capsys, folder, command, *options):
    """The line that is printed. It must be the only one, and no file may be touched."""
    before = files(folder)
    assert run(command, "--checkpoint", folder, *COMMANDS[command], *options) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(r"numpygpt: error: .*\n", line)
    assert files(folder) == before
    return line


@pytest.mark.parametrize("command", ["generate", "attention", "embeddings"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite(capsys, monkeypatch, tmp_path, command, value):
    model = GPTModel(CONFIG)
    model.named_parameters()["tok_emb.weight"][40, 3] = value
    with monkeypatch.context() as patched:
        patched.setattr(module, "_is_finite", lambda array: True)
        save(tmp_path, model)
    assert "holds values that are not finite in model.tok_emb.weight" in refused(capsys, tmp_path, command)


def test_weights_so_large_that_the_logits_overflow(capsys, tmp_path):
    model = GPTModel(CONFIG)
    for weights in model.named_parameters().values():
        weights[...] = 3e38
    save(tmp_path, model)
    for temperature in (0, 1):
        line = refused(capsys, tmp_path, "generate", "--temperature", temperature)
        assert "the model's logits are not finite: its weights are damaged or too large" in line
    assert "the attention weights are not all finite" in refused(capsys, tmp_path, "attention")


def test_a_token_that_the_tokenizer_does_not_know(capsys, tmp_path):
    """The vocabulary is larger than the tokenizer's, as it is after padding to a round number."""
    model = GPTModel({**CONFIG.to_dict(), "vocab_size": 300})
    model.named_parameters()["final_norm.shift"][...] = 1
    model.named_parameters()["out_head.weight"][299] = 100
    save(tmp_path, model)
    line = refused(capsys, tmp_path, "generate", "--temperature", 0)
    assert "token id 299 is none of the tokenizer bytes, which has 256; the model was trained with another" in line


@pytest.mark.parametrize("command", ["attention", "embeddings"])
def test_a_picture_does_not_take_the_place_of_its_model(capsys, tmp_path, command):
    model = save(tmp_path) / "checkpoint.safetensors"
    line = refused(capsys, tmp_path, command, "--out", model)
    assert f"the picture {model} would take the place of the model; name another --out" in line


def test_a_tokenizer_larger_than_the_vocabulary(capsys, tmp_path):
    save(tmp_path, GPTModel({**CONFIG.to_dict(), "vocab_size": 100}))
    line = refused(capsys, tmp_path, "embeddings")
    assert "token 126 has no vector: the model has 100, and another tokenizer" in line


@pytest.mark.parametrize("options", [("--temperature", 1e-45), ("--temperature", 1), ("--top-p", 1e-300)])
def test_extreme_sampling_is_the_greedy_choice(capsys, tmp_path, options):
    save(tmp_path)
    arguments = ("generate", "--checkpoint", tmp_path, "--prompt", "x", "--max-new-tokens", 9, "--seed", 0)
    assert run(*arguments, "--temperature", 0) == 0
    greedy = capsys.readouterr().out
    assert run(*arguments, *options) == 0
    assert (capsys.readouterr().out == greedy) == (options != ("--temperature", 1))


def test_more_beams_than_memory_holds(capsys, tmp_path):
    save(tmp_path)
    line = refused(capsys, tmp_path, "generate", "--num-beams", 10**12)
    assert re.search(r"a search with 1000000000000 beams needs at least [\d,]+\.\d GiB of memory", line)


@pytest.mark.parametrize(
    ("lines", "option", "batch"),
    [
        (["word " * 9], "--text", "7 sequences of 5 tokens"),
        (["short one", "a rather long one"] * 3, "--lambada", "4 sequences of 6 tokens"),
    ],
)
def test_a_batch_whose_logits_memory_does_not_hold(capsys, monkeypatch, tmp_path, lines, option, batch):
    """It is refused before a logit is computed, though other batches would have fit."""
    save(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(lines))
    one = scoring_bytes(CONFIG, 1, 6)
    monkeypatch.setattr("numpygpt.model.sizes.machine_memory", lambda: one)
    assert run("evaluate", "--checkpoint", tmp_path, option, text, "--batch-size", 1) == 0
    capsys.readouterr()
    monkeypatch.setattr(GPTModel, "__call__", lambda *arguments: pytest.fail("it computes"))
    assert run("evaluate", "--checkpoint", tmp_path, option, text, "--batch-size", batch[0]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    told = rf"numpygpt: error: a batch \(--batch-size\) of {batch} needs at least .* of memory, .*: make it smaller"
    assert re.fullmatch(told, line), line


EVALUATION = {"step": 3, "epochs_seen": 0.5, "tokens_seen": 9, "train_loss": 2.0, "val_loss": 2.5}
RUN = {"options": Options().to_dict(), "step": 3, "history": [EVALUATION]}


def test_a_run_without_surprises(capsys, tmp_path):
    assert Evaluation.of(EVALUATION)
    assert run("info", "--checkpoint", save(tmp_path, **RUN)) == 0
    assert "validation loss 2.500 nats a token, perplexity 12.18 (step 3)\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": 5}, "options is 5; expected dict"),
        ({"options": {"batch_size": "x"}}, "batch_size is 'x'; expected an integer"),
        ({"options": {"dtype": "int8"}}, "dtype is 'int8'; expected one of: float32, float64"),
        ({"history": {"a": 1}}, "history is {'a': 1}; expected list"),
        ({"history": [7]}, "an evaluation is 7; expected a dict"),
        ({"history": [{**EVALUATION, "val_loss": "low"}]}, "val_loss is 'low'; expected float"),
        ({"step": None}, "step is None; expected int"),
    ],
)
def test_a_run_of_other_types(capsys, tmp_path, changes, message):
    save(tmp_path, **{**RUN, **changes})
    line = refused(capsys, tmp_path, "info")
    assert re.search(rf"the checkpoint .*checkpoint\.safetensors cannot be used: {re.escape(message)}", line)
