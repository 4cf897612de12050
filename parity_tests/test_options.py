"""The options of a training run: declared once, for the command line, for the saved run and for its checks."""

import argparse
from dataclasses import MISSING, fields

import pytest

from numpygpt import PRESETS, GPTConfig, InputError
from numpygpt.commands import info, train
from numpygpt.training.options import PRESET_OPTIONS, Options, declaration
from numpygpt.training.run import TrainingRun
from parity_tests.command import run, write_text

NAMES = [field.name for field in fields(Options)]
RELEASED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
BOOKS = ("book-124M", "book-355M", "book-774M", "book-1558M")


@pytest.fixture(scope="module")
def flags():
    """{name: what argparse knows of it} for the options of the command."""
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return {action.dest: action for action in parser._actions}


@pytest.mark.parametrize("name", NAMES)
def test_each_option_is_declared_whole_and_the_command_has_it(name, flags):
    said = declaration(name)
    action = flags[name]
    assert said.meaning in action.help
    assert action.choices == said.choices
    assert action.default is None, "so that the command knows what was given"
    assert action.option_strings[0] == f"--{name.replace('_', '-')}"
    default = Options.__dataclass_fields__[name].default
    assert default is not MISSING
    assert isinstance(default, bool) or "(default: " in action.help


#: What has an option of its own; the head of classes comes with what is learned.
SIZES = [field for field in fields(GPTConfig) if field.metadata]


@pytest.mark.parametrize("field", SIZES, ids=lambda field: field.name)
def test_the_help_says_what_each_size_of_the_model_means(field):
    parser = argparse.ArgumentParser()
    info.add_arguments(parser)
    (action,) = [action for action in parser._actions if action.dest == field.name]
    assert len(field.metadata["meaning"].split()) > 1
    assert action.help.startswith(f"{field.metadata['meaning']} (default: ")


def test_what_a_run_saves_is_all_of_them_and_reads_back_as_the_same():
    options = Options(text=("a", "b"), lr=0.25, schedule_steps=7)
    saved = options.to_dict()
    assert list(saved) == NAMES
    assert saved["text"] == ["a", "b"]
    assert Options.of(saved) == options
    assert Options.of({"steps": 3}) == Options(steps=3), "what an older run did not know has its default"


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"steps": 10**12 + 1}, "steps is 1000000000001; expected at most 1,000,000,000,000"),
        ({"steps": 10**400}, r"steps is 1000\d*\.\.\.\d*; expected at most 1,000,000,000,000"),
        ({"steps": "5"}, "steps is '5'; expected an integer"),
        ({"batch_size": 2.0}, "batch_size is 2.0; expected an integer"),
        ({"schedule_steps": 0}, "schedule_steps is 0; expected at least 1"),
        ({"seed": None}, "seed is None; expected an integer"),
        ({"lr": 10**400}, r"lr is 1000\d*\.\.\.\d*; expected a finite number of 0 or more"),
        ({"lr": True}, "lr is True; expected a finite number of 0 or more"),
        ({"lr": None}, "lr is None; expected a finite number of 0 or more"),
        ({"dtype": ["float32"]}, r"dtype is \['float32'\]; expected one of: float32, float64"),
        ({"text": "a.txt"}, "text is 'a.txt'; expected a list of texts"),
        ({"vocab": 5}, "vocab is 5; expected a text"),
        ({"tokenizer": "words"}, "tokenizer is 'words'; expected one of: bytes, gpt2"),
    ],
    ids=str,
)
def test_a_value_that_no_run_has_is_refused_in_one_short_line(saved, message):
    with pytest.raises(InputError, match=f"^{message}$") as refused:
        Options.of(saved)
    assert len(str(refused.value)) < 200


def test_integers_serve_as_floats_and_stay_what_they_are_elsewhere():
    options = Options.of({"lr": 1, "clip": 0, "steps": 5})
    assert [type(value) for value in (options.lr, options.clip, options.steps)] == [float, float, int]


def test_a_settled_schedule_has_its_length():
    assert Options(steps=7).settled().schedule_steps == 7
    assert Options(steps=7, schedule_steps=9).settled().schedule_steps == 9
    assert Options(steps=7, schedule="constant", schedule_steps=9).settled().schedule_steps is None


# What a resumed run may change


CHANGEABLE = {
    "text", "vocab", "steps", "lr", "min_lr", "clip", "sample_every", "sample_prompt", "save_every", "keep",
    "checkpoint_activations", "tokens", "optimizer_state", "optimizer_state_dir", "precision", "autocast",
}  # fmt: skip


def test_a_resumed_run_may_change_what_draws_nothing_and_cuts_no_other_batch():
    assert {name for name in NAMES if declaration(name).changeable} == CHANGEABLE


@pytest.mark.parametrize("name", sorted(set(NAMES) - CHANGEABLE))
def test_a_resumed_run_keeps_the_others(name, capsys):
    is_switch = Options.__dataclass_fields__[name].type == bool | None
    value = () if is_switch else ((declaration(name).choices or (5,))[-1],)
    assert run("train", "--resume", "nowhere", f"--{name.replace('_', '-')}", *value) == 2
    assert f"--{name.replace('_', '-')} cannot change in a resumed run" in capsys.readouterr().err


# Presets


def started(monkeypatch, tmp_path, *arguments):
    """The options with which the command starts a run."""
    seen = []

    def start(backend, options, config, directory, **how):
        seen.append(options)
        raise InputError("that was all")

    monkeypatch.setattr(TrainingRun, "start", start)
    assert run("train", "--text", write_text(tmp_path), *arguments) == 2
    (options,) = seen
    return options


@pytest.mark.parametrize(("preset", "lr"), [("gpt2", 6e-4), ("book-124M", 6e-4), ("gpt2-xl", 2e-4)])
def test_a_preset_brings_the_rate_the_batch_and_the_warm_up_of_its_size(monkeypatch, tmp_path, preset, lr):
    options = started(monkeypatch, tmp_path, "--preset", preset)
    assert (options.lr, options.min_lr, options.warmup_steps) == (lr, lr / 10, 100)
    assert options.batch_size * options.accumulate * PRESETS[preset].context_length == 8192


def test_what_is_given_comes_before_what_the_preset_brings(monkeypatch, tmp_path):
    arguments = ("--lr", 0.125, "--batch-size", 3, "--warmup-steps", 2)
    options = started(monkeypatch, tmp_path, "--preset", "gpt2-medium", *arguments)
    assert (options.lr, options.batch_size, options.warmup_steps) == (0.125, 3, 2)
    assert (options.accumulate, options.min_lr) == (8, 3e-4 / 10)


def test_every_preset_has_its_options_and_they_are_options():
    assert PRESET_OPTIONS.keys() == PRESETS.keys()
    for brought in PRESET_OPTIONS.values():
        assert Options.of(brought).lr < Options.lr


def test_a_released_model_and_the_books_of_its_size_are_trained_alike():
    for preset, book in zip(RELEASED, BOOKS, strict=True):
        assert PRESET_OPTIONS[preset] == PRESET_OPTIONS[book]


@pytest.mark.parametrize("command", ["train", "info"])
def test_a_name_that_could_mean_two_models_is_answered_with_both(capsys, command):
    assert run(command, "--preset", "gpt2-small") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--preset: gpt2-small could mean two models; name gpt2, " in line
    assert ", or book-124M, " in line
