"""A training run that is resumed or interrupted gives, bit for bit, what it would have given otherwise."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from copy import deepcopy
from dataclasses import asdict, replace
from hashlib import sha256

import numpy as np
import pytest

from numpygpt import GPTConfig, InputError
from numpygpt.formats import load_model
from numpygpt.formats.checkpoint import FILE_NAME, read_checkpoint, write_checkpoint
from numpygpt.layers import recomputed_block
from numpygpt.model.saving import model_of, saved_config, saved_tokenizer
from numpygpt.model.sizes import training_bytes
from numpygpt.sections import Section
from numpygpt.training.loop import Plan, stop_between_steps, train
from numpygpt.training.numpy_backend import NumpyBackend
from numpygpt.training.options import Options
from numpygpt.training.progress import Progress
from numpygpt.training.run import TrainingRun
from numpygpt.training.step import StepTaken
from parity_tests.checkpoint_files import safetensors_of, sealed_v1, taken_apart
from parity_tests.command import TEXT, TRAINING, files, python, run, write_text

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")  # whole runs are compared

CONFIG = GPTConfig(vocab_size=256, context_length=6, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.2, qkv_bias=True)
#: An epoch has 8 batches, and a step takes 3 of them, so steps begin everywhere in an epoch, and some span two.
OPTIONS = Options(steps=4, batch_size=9, accumulate=3, warmup_steps=2, eval_batches=1, lr=0.01)
SHORT = replace(OPTIONS, accumulate=1)
PLAIN = replace(SHORT, dtype="float64", schedule="constant", clip=0.0, weight_decay=0.0)


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


def start(options, config, directory, **how):
    return TrainingRun.start(NumpyBackend, options, config, directory, **how)


def resume(directory, **changes):
    return TrainingRun.resume(NumpyBackend, directory, **changes)


def go_on(training, until):
    """Go on as the command does, with an evaluation every two steps."""
    while training.step < until:
        training.train_step()
        if training.step % 2 == 0:
            training.evaluate()
    return training


def state(training):
    """Everything that a later step depends on, and everything that was recorded."""
    sections = training.backend.state()
    arrays = {
        f"{section}.{name}": (array.dtype, array.tobytes())
        for section, given in sections.items()
        for name, array in given.arrays.items()
    }
    values = {section: given.values for section, given in sections.items()}
    history = [asdict(evaluation) for evaluation in training.history]
    return arrays, values, history, training.step, training.tokens_seen, training.config, training.options


def assert_same(ours, expected):
    assert ours[1:] == expected[1:]
    assert [name for name in expected[0] if ours[0][name] != expected[0][name]] == []


# Resuming


@pytest.mark.parametrize(
    ("options", "config"),
    [
        (OPTIONS, CONFIG),
        (PLAIN, replace(CONFIG, drop_rate=0.0, tie_weights=True, qkv_bias=False)),
        (replace(PLAIN, attention="flash", checkpoint_activations=True), CONFIG),
    ],
    ids=["dropout, accumulation", "plain, tied", "flash, recomputed"],
)
def test_a_run_resumed_at_any_step_is_the_run_that_never_stopped(tmp_path, text, options, config):
    """There is a checkpoint of each step: within an epoch, at its end, and before the first step."""
    options = replace(options, text=(str(text),))
    saving = start(options, config, tmp_path / "run")
    positions = []
    for step in range(options.steps):
        go_on(saving, step)
        saving.save()
        positions.append(saving.backend.batches.position["batches_done"])
        shutil.copytree(tmp_path / "run", tmp_path / f"stopped at {step}")
    expected = state(go_on(start(options, config, tmp_path / "other"), options.steps))
    assert_same(state(go_on(saving, options.steps)), expected)
    assert len(set(positions)) > 3
    for step in range(options.steps):
        resumed = resume(tmp_path / f"stopped at {step}")
        assert resumed.step == step
        assert resumed.backend.model.attention == options.attention
        assert resumed.backend.model.checkpoint_activations == options.checkpoint_activations
        assert not resumed.finished
        assert_same(state(go_on(resumed, options.steps)), expected)
        assert resumed.finished


def test_a_run_may_stop_and_go_on_again_and_again(tmp_path, text):
    options = replace(OPTIONS, text=(str(text),))
    expected = state(go_on(start(options, CONFIG, tmp_path / "one"), 4))
    training = start(options, CONFIG, tmp_path / "two")
    for until in (1, 2, 3, 4):
        go_on(training, until)
        training.save()
        training = resume(tmp_path / "two")
    assert_same(state(training), expected)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_run_that_is_made_longer_is_the_run_that_was_meant_to_be_longer(tmp_path, text, schedule):
    """The schedule keeps the length that it had at the start, so that no learning rate changes."""
    options = replace(SHORT, text=(str(text),), schedule=schedule, schedule_steps=None)
    longer = replace(options, steps=5, schedule_steps=2)
    expected = go_on(start(longer, CONFIG, tmp_path / "one"), 5)
    go_on(start(replace(options, steps=2), CONFIG, tmp_path / "two"), 2).save()
    resumed = go_on(resume(tmp_path / "two", steps=3), 3)
    resumed.save()
    resumed = go_on(resume(tmp_path / "two", steps=5), 5)
    assert_same(state(resumed), state(expected))
    rates = [resumed.options.learning_rate(step) for step in range(5)]
    assert rates == [expected.options.learning_rate(step) for step in range(5)]
    assert rates[2:] == [options.min_lr if schedule == "cosine" else options.lr] * 3


def test_a_checkpoint_of_version_1_is_resumed_bit_for_bit(tmp_path, text):
    """Its options did not have the length of the schedule, which was the number of steps."""
    options = replace(SHORT, text=(str(text),), decay="all")  # as it was then
    training = go_on(start(options, CONFIG, tmp_path / "run"), 2)
    training.save()
    as_version_1(tmp_path / "run" / FILE_NAME)
    resumed = resume(tmp_path / "run", steps=6)
    assert resumed.options.schedule_steps == 4
    assert_same(state(go_on(resumed, 4))[:-1], state(go_on(training, 4))[:-1])


def as_version_1(path):
    """Write the checkpoint as numpygpt 0.1.0 did: weights without a prefix, and a list of `training` values."""
    header, tensors = taken_apart(path)
    tensors = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
    values = {name: section["values"] for name, section in header["sections"].items()}
    for option in ("schedule_steps", "decay", "tokens"):
        del values["run"]["options"][option]
    del values["optimizer"]["groups"]
    contents = {
        **values["model"],
        "training": {**values["run"], "position": values["data"]["position"]},
        "optimizer": values["optimizer"],
        "numpygpt_version": "0.1.0",
        "sha256": {key: sha256(data).hexdigest() for key, (_, _, data) in tensors.items()},
    }
    path.write_bytes(safetensors_of(tensors, {"numpygpt": sealed_v1(contents)}))


def test_a_checkpoint_says_what_the_run_is(tmp_path, text):
    training = go_on(start(replace(OPTIONS, text=(str(text),)), CONFIG, tmp_path), 2)
    assert training.save() == tmp_path / FILE_NAME
    saved = read_checkpoint(tmp_path)
    assert saved.names == ["model", "optimizer", "random", "data", "run"]
    assert (saved_config(saved), saved_tokenizer(saved)) == (CONFIG, "bytes")
    values = saved.values("run")
    assert (values["step"], values["tokens_seen"]) == (2, 2 * 3 * 9 * 6)
    assert Options.of(values["options"]) == training.options
    (entry,) = values["history"]
    assert (entry["step"], entry["tokens_seen"], entry["epochs_seen"]) == (2, 324, 2 * 3 / 8)
    assert training.plot().read_bytes().startswith(b"\x89PNG")


def test_the_command_keeps_checkpoints_that_every_command_takes(tmp_path, text, monkeypatch, capsys):
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")
    folder = tmp_path / "run"
    arguments = ("train", "--text", text, *TRAINING, "--steps", 4, "--save-every", 1, "--keep", 3, "--out", folder)
    assert run(*arguments) == 0
    first, last = (folder / "earlier" / f"step-{step:013}.safetensors" for step in (2, 3))
    assert f"\nkept 2 before it: {first} to {last.name}\n" in capsys.readouterr().out
    for path in (first, last):
        assert run("generate", "--checkpoint", path, "--prompt", "The", "--max-new-tokens", 1) == 0
        weights = model_of(read_checkpoint(path)).state_dict()
        assert all(np.array_equal(array, weights[name]) for name, array in load_model(path).state_dict().items())
    assert run("train", "--resume", folder, "--steps", 5, "--keep", 0) == 2
    assert capsys.readouterr().err == "numpygpt: error: keep is 0; expected at least 1\n"
    assert run("train", "--resume", folder, "--steps", 5, "--keep", 2) == 0
    assert re.search(r"\nkept 1 before it: \S+/earlier/step-0000000000004\.safetensors\n", capsys.readouterr().out)
    assert run("train", "--resume", folder, "--steps", 6, "--keep", 1) == 0
    assert "kept" not in capsys.readouterr().out
    assert not (folder / "earlier").exists()


@pytest.fixture(scope="module")
def sections(without_checks_of_annotations, tmp_path_factory):
    """The sections of a run after two steps, whose text still exists."""
    folder = tmp_path_factory.mktemp("sections")
    training = go_on(start(replace(SHORT, text=(str(write_text(folder)),)), CONFIG, folder / "run"), 2)
    return training._sections()


def refused(folder, sections, message):
    """Check that a checkpoint of these sections, with the right hashes, cannot be resumed."""
    write_checkpoint(folder, sections)
    with pytest.raises(InputError, match=f"^the checkpoint .*checkpoint.safetensors {message}"):
        resume(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: run.pop("step"), "step is missing; expected int"),
        (lambda run: run.update(step=-1), "step is -1; expected 0 or more"),
        (lambda run: run.update(step=2.0), "step is 2.0; expected int"),
        (lambda run: run.update(tokens_seen="many"), "tokens_seen is 'many'; expected int"),
        (lambda run: run.update(history={}), "history is {}; expected list"),
        (lambda run: run.update(history=[5]), "an evaluation is 5; expected a dict"),
        (lambda run: run["history"][0].pop("val_loss"), "val_loss is missing; expected float"),
        (lambda run: run["history"][0].update(step="x"), "step is 'x'; expected int"),
        (lambda run: run.update(text_sha256=5), "text_sha256 is 5; expected str"),
        (lambda run: run.update(options=[]), r"options is \[\]; expected dict"),
        (lambda run: run["options"].update(lr="x"), "lr is 'x'; expected a finite number"),
        (lambda run: run["options"].update(text=5), "text is 5; expected a list of texts"),
        (lambda run: run["options"].update(text=[5]), r"text is \[5\]; expected a list of texts"),
        (lambda run: run["options"].update(steps=True), "steps is True; expected an integer"),
        (lambda run: run["options"].update(sample_prompt=None), "sample_prompt is None; expected a text"),
        (lambda run: run["options"].update(checkpoint_activations=1), "checkpoint_activations is 1; expected True or"),
        (lambda run: run["options"].update(heads=3), r"\['heads'\] are no options of a training run"),
    ],
)
def test_a_run_that_somebody_made_is_refused(tmp_path, sections, damage, message):
    values = deepcopy(sections["run"].values)
    damage(values)
    refused(tmp_path, {**sections, "run": Section(values, {})}, f"cannot be used: {message}")


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (5, "position is 5; expected dict"),
        ({"batches_done": 0}, "order_seed is missing; expected int or null"),
        ({"order_seed": "x", "batches_done": 1}, "order_seed is 'x'; expected int or null"),
        ({"order_seed": 2**70, "batches_done": 1}, f"seed: found {2**70}; give an int"),
        ({"order_seed": 1, "batches_done": 1.5}, "batches_done is 1.5; expected int"),
        ({"order_seed": 1, "batches_done": 10**12}, "order_seed 1 and batches_done 1000000000000 are no position"),
        ({"order_seed": None, "batches_done": -1}, "order_seed None and batches_done -1 are no position"),
    ],
    ids=str,
)
def test_a_position_that_somebody_made_is_refused(tmp_path, sections, position, message):
    refused(tmp_path, {**sections, "data": Section({"position": position}, {})}, f"cannot be used: {message}")


@pytest.mark.parametrize("section", ["model", "optimizer", "random", "data"])
def test_a_run_without_one_of_its_sections_is_refused(tmp_path, sections, section):
    others = {name: given for name, given in sections.items() if name != section}
    refused(tmp_path, others, f"has no section '{section}'")


def test_a_run_can_be_resumed_from_another_folder(tmp_path, text, monkeypatch):
    """A text that is named relative to the current folder is found again from any other folder."""
    monkeypatch.chdir(tmp_path)
    go_on(start(replace(SHORT, text=(text.name,)), CONFIG, tmp_path / "run"), 1).save()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume(tmp_path / "run").options.text == (str(text),)


def test_a_text_that_has_moved_is_named_anew(tmp_path, text):
    options = replace(SHORT, text=(str(text),))
    training = go_on(start(options, CONFIG, tmp_path / "run"), 1)
    training.save()
    moved = text.rename(tmp_path / "moved.txt")
    message = "cannot read the text file .*text.txt: .*; say with --text where the text of the run is now"
    with pytest.raises(InputError, match=message):
        resume(tmp_path / "run")
    resumed = resume(tmp_path / "run", text=(str(moved),))
    resumed.save()
    assert resume(tmp_path / "run").options.text == (str(moved),)
    assert_same(state(go_on(resumed, 4))[:-1], state(go_on(training, 4))[:-1])


def test_another_text_than_the_runs_is_refused(tmp_path, text):
    start(replace(SHORT, text=(str(text),)), CONFIG, tmp_path / "run").save()
    write_text(tmp_path, TEXT.replace("cat", "Cat", 1))
    message = r"the text \(.*text\.txt\) is not the one .*; expected SHA-256 \w{64}, found \w{64}$"
    with pytest.raises(InputError, match=message):
        resume(tmp_path / "run")


def test_a_model_without_a_run_cannot_be_resumed(tmp_path, text):
    training = start(replace(SHORT, text=(str(text),)), CONFIG, tmp_path / "run")
    write_checkpoint(tmp_path / "model", training.backend.state())
    with pytest.raises(InputError, match="holds a model but no training run; start one with --out"):
        resume(tmp_path / "model")


def test_fewer_steps_than_are_done_are_refused(tmp_path, text):
    go_on(start(replace(SHORT, text=(str(text),)), CONFIG, tmp_path / "run"), 2).save()
    with pytest.raises(InputError, match=r"^steps is 1, but the run in .*run has done 2; expected at least as many$"):
        resume(tmp_path / "run", steps=1)
    assert resume(tmp_path / "run", steps=2).finished


def test_a_resumed_run_may_compute_its_blocks_again_and_remembers_that(tmp_path, text, monkeypatch):
    """It gives the bits of a run that keeps activations. Flash attention would give others, so it is refused."""
    go_on(start(replace(SHORT, text=(str(text),)), CONFIG, tmp_path / "kept"), 2).save()
    shutil.copytree(tmp_path / "kept", tmp_path / "recomputed")
    assert run("train", "--resume", tmp_path / "kept", "--sample-every", 0) == 0
    recomputed = []
    backward = recomputed_block.backward
    monkeypatch.setattr(recomputed_block, "backward", lambda *a, **k: recomputed.append(1) or backward(*a, **k))
    assert run("train", "--resume", tmp_path / "recomputed", "--sample-every", 0, "--checkpoint-activations") == 0
    assert recomputed
    kept, other = (read_checkpoint(tmp_path / name) for name in ("kept", "recomputed"))
    assert other.values("run")["options"]["checkpoint_activations"]
    for name, array in model_of(kept).state_dict().items():
        assert np.array_equal(array, model_of(other).state_dict()[name]), name
    assert run("train", "--resume", tmp_path / "recomputed", "--steps", 4, "--attention", "flash") == 2


def test_infos_step_is_the_runs_own_unless_the_command_line_says_another(tmp_path, text, capsys):
    computing = ("--dtype", "float64", "--attention", "flash", "--checkpoint-activations")
    assert run("train", "--text", text, *TRAINING, *computing, "--out", tmp_path / "run") == 0
    capsys.readouterr()

    def printed(*options):
        assert run("info", "--checkpoint", tmp_path / "run", *options) == 0
        out = capsys.readouterr().out
        return re.search(r"^a training step on .*:$", out, re.M)[0], re.findall(r"^(\w+) +([\d,.]+) MiB$", out, re.M)

    def predicted(*step, **options):
        parts = training_bytes(saved_config(read_checkpoint(tmp_path / "run")), *step, **options)
        return [(name, f"{size / 2**20:,.1f}") for name, size in parts._asdict().items()]

    line, parts = printed()
    assert line == "a training step on 3 x 6 tokens in float64, AdamW:"
    assert parts == predicted(3, 6, "float64", attention="flash", checkpoint_activations=True)
    size = ("--batch-size", 900, "--tokens", 5)  # large enough to show in tenths of a MiB
    line, parts = printed(*size)
    assert line == "a training step on 900 x 5 tokens in float64, AdamW:"
    assert parts == predicted(900, 5, "float64", attention="flash", checkpoint_activations=True)
    for option, changed in (
        (("--attention", "math"), {"attention": "math"}),
        (("--no-checkpoint-activations",), {"checkpoint_activations": False}),
    ):
        found = printed(*size, *option)[1]
        computed = {"attention": "flash", "checkpoint_activations": True, **changed}
        assert found == predicted(900, 5, "float64", **computed)
        assert found != parts
    line, _ = printed("--dtype", "float32")
    assert line == "a training step on 3 x 6 tokens in float32, AdamW:"


# Starting


def test_a_run_that_is_there_is_not_overwritten_unless_that_is_asked_for(tmp_path, text):
    options = replace(OPTIONS, text=(str(text),))
    directory = tmp_path / "run"
    start(options, CONFIG, directory).save()
    before = files(tmp_path)
    with pytest.raises(InputError) as refused:
        start(replace(options, seed=1), CONFIG, directory)
    assert str(refused.value) == (
        f"{directory} already holds a checkpoint; continue it with --resume {directory}, replace it with --overwrite, "
        f"or choose another --out"
    )
    assert files(tmp_path) == before
    training = start(replace(options, seed=1), CONFIG, directory, overwrite=True)
    assert files(tmp_path) == before, "until the first save"
    training.save()
    assert read_checkpoint(directory).values("run")["options"]["seed"] == 1


def test_a_folder_that_cannot_be_written_is_found_before_the_training(tmp_path, text):
    with pytest.raises(InputError, match=r"^cannot write to the folder .*text\.txt: File exists; choose another$"):
        start(replace(OPTIONS, text=(str(text),)), CONFIG, text)


def test_a_folder_without_permission_is_found_before_the_training(tmp_path, text, monkeypatch):
    def refuse(**options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"^cannot write to the folder .*run: Permission denied; choose another$"):
        start(replace(OPTIONS, text=(str(text),)), CONFIG, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"accumulate": -1}, "accumulate is -1; expected at least 1"),
        ({"lr": float("nan")}, "lr is nan; expected a finite number of 0 or more"),
        ({"clip": -1.0}, "clip is -1.0; expected a finite number of 0 or more"),
        ({"schedule": "steps"}, "schedule is 'steps'; expected one of: cosine, constant, linear, wsd"),
        ({"dtype": "float16"}, "dtype is 'float16'; expected one of: float32, float64"),
        ({"sample_prompt": ""}, "sample_prompt is empty; expected text for the samples to continue, or sample_every 0"),
    ],
)
def test_options_out_of_range_are_named(changes, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        Options(**changes)


def test_without_samples_there_need_be_no_prompt():
    assert Options(sample_every=0, sample_prompt="").sample_prompt == ""


def test_the_tokenizer_must_fit_the_model(tmp_path, text):
    with pytest.raises(InputError, match="tokenizer 'bytes' has 256 tokens, but the model's vocab_size is 255"):
        start(replace(OPTIONS, text=(str(text),)), replace(CONFIG, vocab_size=255), tmp_path)


@pytest.mark.parametrize(
    ("length", "batch_size", "message"),
    [
        (6, 1, "the training part of the text is too short: the text has 5 tokens; expected at least 7"),
        (60, 1, "the validation part of the text is too short: the text has 6 tokens; expected at least 7"),
        (60, 9, "the training part of the text is too short: 8 windows make no batch of 9"),
    ],
)
def test_a_part_of_the_text_that_is_too_short_is_named(tmp_path, length, batch_size, message):
    text = write_text(tmp_path, TEXT[:length])
    with pytest.raises(InputError, match=message):
        start(Options(text=(str(text),), batch_size=batch_size), CONFIG, tmp_path / "run")


def test_learning_rates_follow_the_schedule():
    cosine = Options(steps=10, warmup_steps=2, lr=0.5, min_lr=0.25)
    assert [cosine.learning_rate(step) for step in (0, 1, 2, 6, 10)] == [0.25, 0.5, 0.5, 0.375, 0.25]
    assert replace(cosine, min_lr=0.75).learning_rate(10) == 0.5, "the cosine never climbs"
    constant = replace(cosine, schedule="constant")
    assert [constant.learning_rate(step) for step in range(11)] == [0.25, *[0.5] * 10]
    linear = replace(cosine, schedule="linear")
    assert [linear.learning_rate(step) for step in (0, 1, 2, 6, 10, 11)] == [0.25, 0.5, 0.5, 0.375, 0.25, 0.25]
    stable = replace(cosine, schedule="wsd", decay_steps=4)
    assert [stable.learning_rate(step) for step in (0, 1, 6, 8, 10, 11)] == [0.25, 0.5, 0.5, 0.375, 0.25, 0.25]
    assert replace(stable, decay_steps=None).settled().decay_steps == 2, "a fifth of the schedule"
    assert constant.settled().decay_steps is None


TAKEN = StepTaken(1.5, {"a": 2.0})


@pytest.mark.parametrize(("clip", "max_norm"), [(0.5, 0.5), (0.0, None)])
def test_every_step_has_the_options_rate_decay_clipping_batches_and_generator(
    tmp_path, text, monkeypatch, clip, max_norm
):
    options = replace(OPTIONS, text=(str(text),), clip=clip, weight_decay=0.3)
    training = start(options, CONFIG, tmp_path)
    steps = []

    def record(model, optimizer, micro_batches, **given):
        steps.append((optimizer.lr, optimizer.weight_decay, [inputs.shape for inputs, _ in micro_batches], given))
        return TAKEN

    monkeypatch.setattr("numpygpt.training.numpy_backend.training_step", record)
    assert [training.train_step() for _ in range(4)] == [TAKEN] * 4
    backend = training.backend
    given = {"goal": backend.goal, "rng": backend.rng, "max_norm": max_norm, "scale": backend.scale}
    assert steps == [(options.learning_rate(step), 0.3, [(9, 6)] * 3, given) for step in range(4)]


# Ctrl-C


def checkpoint_of(directory):
    """Everything that the checkpoint's file holds."""
    saved = read_checkpoint(directory)
    arrays = {
        f"{section}.{name}": array.tobytes() for section in saved.names for name, array in saved.arrays(section).items()
    }
    return arrays, {section: saved.values(section) for section in saved.names}


ARGUMENTS = (*TRAINING, "--steps", 4, "--drop-rate", 0.2, "--eval-every", 2, "--save-every", 3)


@pytest.mark.parametrize(
    ("method", "call", "stopped_at"),
    [("evaluate", 1, 0), ("train_step", 1, 1), ("train_step", 3, 3), ("train_step", 4, 4)],
    ids=["during the first evaluation", "in the first step", "in the third step", "in the last step"],
)
def test_ctrl_c_finishes_the_step_and_the_resumed_run_is_the_uninterrupted_one(
    tmp_path, text, monkeypatch, capsys, method, call, stopped_at
):
    done = getattr(TrainingRun, method)
    calls = []

    def interrupted(training):
        calls.append(method)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return done(training)

    arguments = ("train", "--text", text, *ARGUMENTS)
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")
    assert run(*arguments, "--out", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, method, interrupted)
        status = run(*arguments, "--out", tmp_path / "cut")
    out = capsys.readouterr().out.splitlines()
    if stopped_at == 4:
        assert status == 0
    else:
        assert status == 130
        assert out[-1] == f"stopped after step {stopped_at} of 4; go on with: numpygpt train --resume {tmp_path}/cut"
    assert read_checkpoint(tmp_path / "cut").values("run")["step"] == stopped_at
    assert run("train", "--resume", tmp_path / "cut") == 0
    ours, expected = checkpoint_of(tmp_path / "cut"), checkpoint_of(tmp_path / "whole")
    assert ours[1] == expected[1]
    assert ours[0] == expected[0]
    assert (tmp_path / "cut" / FILE_NAME).read_bytes() == (tmp_path / "whole" / FILE_NAME).read_bytes()


def test_ctrl_c_in_a_real_process(tmp_path, text):
    """The signal stops it at any step. The same number of steps without a signal give the same checkpoint."""
    arguments = ["train", "--text", text, *TRAINING, "--drop-rate", 0.2, "--schedule", "constant"]
    command = [sys.executable, "-m", "numpygpt", *arguments, "--steps", 10**6, "--out", tmp_path / "cut"]
    training = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    for line in training.stdout:
        if line.startswith("step 0:"):
            break
    training.send_signal(signal.SIGINT)
    out, err = training.communicate(timeout=120)
    assert training.returncode == 130, err
    assert "Traceback" not in err
    found = re.search(r"^stopped after step (\d+) of 1000000; go on with: numpygpt train --resume (.*)$", out, re.M)
    step, folder = int(found[1]), found[2]
    assert folder == str(tmp_path / "cut")
    for more in (["--resume", folder], ["--text", text, *arguments[3:], "--out", tmp_path / "whole"]):
        done = python("-m", "numpygpt", "train", *more, "--steps", step + 2)
        assert done.returncode == 0, done.stderr
    assert checkpoint_of(tmp_path / "cut") == checkpoint_of(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number):
    def kill(number, frame):
        raise KeyboardInterrupt

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(number, kill)
    try:
        with stop_between_steps() as stop:
            assert not stop.requested
            signal.raise_signal(number)
            assert stop.requested
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        assert signal.getsignal(number) is kill
        with pytest.raises(ZeroDivisionError), stop_between_steps():
            1 // 0  # noqa: B018
        assert signal.getsignal(number) is kill, "also after an error"
        with stop_between_steps() as stop:
            assert not stop.requested, "one request does not outlive its run"
    finally:
        signal.signal(number, previous[number])
    assert {number: signal.getsignal(number) for number in previous} == previous


@pytest.fixture
def no_hangup():
    """SIGHUP does what a terminal's does by default; afterwards, what it did before."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("no_hangup")
def test_a_closed_terminal_asks_as_often_as_it_likes():
    """The shell and the system both send the signal."""
    with stop_between_steps() as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert stop.requested
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


@pytest.mark.usefixtures("no_hangup")
def test_a_signal_that_is_ignored_as_under_nohup_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_between_steps() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.requested


def test_a_handler_that_is_not_pythons_is_left_as_it_is(monkeypatch):
    getsignal = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else getsignal(number))
    with stop_between_steps():
        assert getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert getsignal(signal.SIGINT) != signal.default_int_handler


def test_a_run_may_be_trained_in_another_thread_than_the_main_one(tmp_path, text):
    """Python lets the main thread alone say what a signal does."""
    training, saved = start(replace(SHORT, text=(str(text),)), CONFIG, tmp_path), []
    thread = threading.Thread(target=lambda: saved.append(train(training, Plan.of(training.options), Progress())))
    thread.start()
    thread.join()
    assert saved == [tmp_path / FILE_NAME]


def test_numbers_that_json_writes_come_back_exactly(tmp_path, text):
    """Learning rates and losses are floats with 17 digits."""
    options = replace(SHORT, text=(str(text),), lr=0.1 + 0.2, min_lr=1 / 3)
    training = go_on(start(options, CONFIG, tmp_path), 2)
    training.save()
    resumed = resume(tmp_path)
    assert resumed.options == options.settled()
    assert resumed.history == training.history
    assert resumed.backend.optimizer.lr == training.backend.optimizer.lr
    assert np.isfinite(resumed.history[0].train_loss)
