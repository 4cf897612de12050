"""What a run of `numpygpt finetune` says at its end can be typed, for each objective, and is what its model is for."""

import io
import json
import re
import shlex
import sys
from itertools import takewhile
from pathlib import Path

import pytest

from numpygpt import GPTConfig, GPTModel
from numpygpt.commands.model_options import flag
from numpygpt.training import run as run_module
from numpygpt.training.run import TrainingRun
from numpygpt.tuning.options import ADAPTER_OPTIONS, NEEDED, OBJECTIVES, OF_OBJECTIVES, FinetuneOptions
from parity_tests.chatting import TOKENIZER, saved
from parity_tests.command import run, write_text

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")

ONE_STEP = ("--steps", 1, "--batch-size", 2, "--eval-batches", 1, "--warmup-steps", 0)
PLAIN = ("--template", "plain")
RECORD = {"prompt": "Add", "completion": "3", "chosen": "3", "rejected": "four", "text": "fine", "label": "good"}
#: Options of each objective; DIR is the model to begin with, and JUDGE a reward model.
OPTIONS = {
    "next-token": PLAIN,
    "classify": ("--classes", "bad", "good"),
    "reward": PLAIN,
    "dpo": PLAIN,
    "ppo": (*PLAIN, "--reward-model", "JUDGE", "--max-new-tokens", 3, "--rounds", 1),
    "grpo": (*PLAIN, "--reward-model", "JUDGE", "--max-new-tokens", 3, "--group", 2),
    "distill": (*PLAIN, "--teacher", "DIR"),
}


#: What the losses are in, if not in nats a token.
UNITS = {
    "classify": "nats a text", "reward": "nats a pair", "dpo": "nats a pair", "ppo": "(minus the mean reward)",
    "grpo": "(minus the mean reward)",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    (folder / "records.jsonl").write_text(f"{json.dumps(RECORD)}\n" * 4)
    write_text(folder)
    config = GPTConfig(TOKENIZER.n_vocab, 40, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.0, qkv_bias=False)
    return saved(folder, GPTModel(config))


@pytest.fixture(scope="module")
def judge(base):
    assert tune(base, base / "judge", "--objective", "reward", *PLAIN) == 0
    return base / "judge"


def tune(base, out, *options, data="records.jsonl"):
    return run("finetune", "--checkpoint", base, "--data", base / data, "--out", out, *ONE_STEP, *options)


def typed(said):
    """The last line, and the arguments of the command in it."""
    line = said.splitlines()[-1]
    program, *arguments = shlex.split(line.partition(": ")[2])
    assert program == "numpygpt"
    return line.partition(":")[0], arguments


def test_every_objective_is_tried():
    assert OPTIONS.keys() == OBJECTIVES.keys()


@pytest.mark.parametrize("objective", OPTIONS)
def test_the_command_that_is_told_works(capsys, monkeypatch, base, judge, tmp_path, objective):
    places = {"DIR": base, "JUDGE": judge}
    options = [places.get(option, option) for option in OPTIONS[objective]]
    assert tune(base, tmp_path / "run", "--objective", objective, *options) == 0
    what, arguments = typed(capsys.readouterr().out)
    expected = {"classify": ("evaluate it", "evaluate"), "reward": ("evaluate it", "evaluate")}
    assert (what, arguments[0]) == expected.get(objective, ("talk to it", "chat"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Add\n"))
    assert run(*arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 1
    assert run("info", "--checkpoint", tmp_path / "run") == 0
    classes = {"classify": "2", "reward": "1"}.get(objective, "None")
    said = capsys.readouterr().out
    assert re.search(rf"^classes {classes}$", said, re.M)
    assert re.search(rf"^validation loss -?\d\.\d+ {re.escape(UNITS.get(objective, 'nats a token'))}", said, re.M)
    assert ("perplexity" in said) == (objective == "next-token")


def test_the_picture_says_what_the_losses_are(monkeypatch, base, tmp_path):
    monkeypatch.undo()
    drawn = []
    monkeypatch.setattr(run_module, "plot_losses", lambda *arguments, unit: drawn.append(unit))
    assert tune(base, tmp_path / "run", "--objective", "dpo", *PLAIN) == 0
    assert drawn == ["nats a pair"]


def test_an_adapter_with_a_head_is_evaluated_and_told_of(capsys, base, tmp_path):
    lora = ("--lora", "r=2,alpha=4")
    assert tune(base, tmp_path / "run", "--objective", "classify", "--classes", 2, *lora) == 2
    assert "label is 'good'; expected a number from 0 to 1" in capsys.readouterr().err
    assert tune(base, tmp_path / "run", "--objective", "classify", "--classes", "bad", "good", *lora) == 0
    _, arguments = typed(capsys.readouterr().out)
    assert run(*arguments) == 0
    capsys.readouterr()
    assert run("info", "--checkpoint", tmp_path / "run") == 0
    assert "classes 2" in capsys.readouterr().out


def test_text_is_continued(capsys, base, tmp_path):
    assert tune(base, tmp_path / "run", data="text.txt") == 0
    what, arguments = typed(capsys.readouterr().out)
    assert (what, arguments[0]) == ("let it write", "generate")
    assert run(*arguments, "--max-new-tokens", 2) == 0


def test_chat_takes_the_template_of_the_run(capsys, monkeypatch, base, tmp_path):
    """What the template `plain` makes of the message is what the model reads."""
    assert tune(base, tmp_path / "run", *PLAIN) == 0
    read, decode = [], GPTModel.decode
    monkeypatch.setattr(GPTModel, "decode", lambda model, ids, past=None: read.append(ids) or decode(model, ids, past))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Add\n"))
    assert run("chat", "--checkpoint", tmp_path / "run", "--max-new-tokens", 1) == 0
    assert bytes(read[0][0].tolist()) == b"Add\n"


# The page of the objectives

PAGE = Path(__file__).parents[1] / "docs" / "finetuning.md"
#: What an option is that has no default.
OPEN = {"reference": "the start", "clip_high": "`--clip-range`"}


def rows_of(head):
    """The rows of the table of the page that has this head, as lists of cells."""
    lines = PAGE.read_text(encoding="utf-8").partition(f"| {head} |")[2].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in takewhile(str.strip, lines)]


def shown(objective, name):
    settings = OBJECTIVES[objective].settings
    if name not in settings:
        return "–"
    if (objective, name) in NEEDED:
        return "needed"
    value = settings[name]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return OPEN[name] if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def test_the_page_has_each_objective_and_each_option_with_its_default():
    assert [(row[0], row[1]) for row in rows_of("objective")] == [
        (f"`{name}`", objective.meaning) for name, objective in OBJECTIVES.items()
    ]
    expected = [[f"`{flag(name)}`", *(shown(each, name) for each in OBJECTIVES)] for name in OF_OBJECTIVES]
    assert rows_of("option") == expected, "\n".join(f"| {' | '.join(row)} |" for row in expected)


def test_the_page_has_the_learning_rates():
    rates = [FinetuneOptions().lr, *(OBJECTIVES[name].usual["lr"] for name in ("dpo", "ppo", "grpo"))]
    assert rates[2] == rates[3]
    assert [each for each, objective in OBJECTIVES.items() if "lr" in objective.usual] == ["dpo", "ppo", "grpo"]
    numbers = "The learning rate is {:g}, and of dpo {:g}, of ppo and grpo {:g}; with an adapter it is {:g}, whatever"
    assert numbers.format(*rates[:3], ADAPTER_OPTIONS["lr"]) in PAGE.read_text(encoding="utf-8")
