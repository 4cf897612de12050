"""DIR/log.jsonl: a line for each step, of both commands, and what does not cost a run its steps."""

import errno
import json
import math
import os
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from numpygpt.training import journal
from numpygpt.training.loop import Plan
from numpygpt.training.loop import train as train_run
from numpygpt.training.progress import Progress
from numpygpt.training.run import TrainingRun
from numpygpt.training.step import StepTaken
from parity_tests.command import write_text
from parity_tests.counting_backend import CONFIG, Counting, options_of, started
from parity_tests.torch_command import PROGRAMS, SIZES, log_of, train

FULL = Path("/dev/full")
KEYS = ["step", "loss", "lr", "grad_norm", "tokens_per_second"]


def trained(run, progress=None):
    """The lines of the run's log after its last step."""
    train_run(run, Plan.of(run.options), progress or Progress())
    return log_of(run.directory)


def test_each_step_has_a_line_with_the_documented_keys(tmp_path):
    run = started(tmp_path)
    lines = trained(run)
    assert [line.pop("tokens_per_second") > 0 for line in lines] == [True] * 5
    expected = [
        {"step": step, "loss": 7.0, "lr": run.options.learning_rate(step - 1), "grad_norm": 5.0} for step in range(1, 6)
    ]
    for step in (2, 4, 5):
        expected[step - 1]["val_loss"] = 5.0
    assert lines == expected


@pytest.mark.parametrize("program", PROGRAMS)
def test_both_commands_write_the_same_keys(tmp_path, monkeypatch, program):
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")
    write_text(tmp_path)
    folder = train(program, tmp_path / "run", *SIZES, "--steps", 3, "--eval-every", 2, "--sample-every", 0)
    assert [list(line) for line in log_of(folder)] == [KEYS, [*KEYS, "val_loss"], [*KEYS, "val_loss"]]
    train(program, folder, "--resume", folder, "--steps", 4)
    assert [line["step"] for line in log_of(folder)] == [1, 2, 3, 4]
    assert all(math.isfinite(value) for line in log_of(folder) for value in line.values())


def test_a_speed_is_that_of_steps_alone(tmp_path, monkeypatch):
    """A clock that goes on by a second at each look shows one second a step, though evaluations take time, too."""
    seconds = iter(range(1000))
    monkeypatch.setattr("numpygpt.training.loop.time.perf_counter", lambda: float(next(seconds)))
    run = started(tmp_path)
    assert {line["tokens_per_second"] for line in trained(run)} == {run.tokens_per_step}


def test_a_gradient_that_overflowed_has_no_norm_in_json(tmp_path):
    class Overflowing(Counting):
        def step(self, learning_rate):
            return StepTaken(7.0, {"a": math.inf})

    trained(started(tmp_path, Overflowing, steps=1))
    (line,) = (tmp_path / "run" / journal.FILE_NAME).read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["grad_norm"] is None


# Resumed


def test_the_lines_of_steps_that_are_taken_again_go(tmp_path):
    """A run that is killed has lines after its last checkpoint."""
    run = started(tmp_path, save_every=2)
    run.train_step()
    run.train_step()
    run.save()
    path = run.directory / journal.FILE_NAME
    path.write_text("".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in (1, 2, 3, 4)))
    lines = trained(TrainingRun.resume(Counting, run.directory))
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, 0.5), (3, 7.0), (4, 7.0), (5, 7.0)]


@pytest.mark.parametrize(
    "torn",
    ['{"step": 2, "lo', '{"step": 2, "loss": 0.5}', "\x00\x00\x00\n", '{"loss": 1}\n', "2\n", "[" * 99_999 + "\n"],
    ids=["cut", "without its end", "bytes of 0", "no step", "a number", "too deep"],
)
def test_what_is_no_line_of_a_step_goes(tmp_path, torn):
    run = started(tmp_path)
    run.train_step()
    run.train_step()
    run.save()
    path = run.directory / journal.FILE_NAME
    path.write_text('{"step": 1, "loss": 0.5}\n' + torn)
    assert [line["step"] for line in trained(TrainingRun.resume(Counting, run.directory))] == [1, 3, 4, 5]


def test_another_run_in_the_folder_begins_another_log(tmp_path):
    trained(started(tmp_path))
    run = TrainingRun.start(Counting, options_of(tmp_path, steps=2), CONFIG, tmp_path / "run", overwrite=True)
    assert [line["step"] for line in trained(run)] == [1, 2]


# A log that cannot be written


class Told(Progress):
    def __init__(self):
        super().__init__()
        self.lines = []

    def write(self, line):
        self.lines.append(line)


def test_a_full_disk_ends_the_log_and_not_the_run(tmp_path, monkeypatch):
    run, progress = started(tmp_path), Told()

    def full(line):
        if line["step"] == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return json.dumps(line)

    monkeypatch.setattr(journal, "json", SimpleNamespace(dumps=full, loads=json.loads))
    train_run(run, Plan.of(run.options), progress)
    assert [line["step"] for line in log_of(run.directory)] == [1, 2]
    assert run.finished
    path = run.directory / journal.FILE_NAME
    assert progress.lines[-1] == f"the log {path} was not written to its end: No space left on device"


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full to write to")
def test_a_device_that_is_full_ends_the_log_and_not_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_keep_until", lambda path, step: None)  # nobody can read the device to its end
    run, progress = started(tmp_path), Told()
    (run.directory / journal.FILE_NAME).symlink_to(FULL)
    train_run(run, Plan.of(run.options), progress)
    assert run.finished
    assert "No space left on device" in progress.lines[-1]


def test_a_log_that_cannot_be_opened_costs_nothing(tmp_path):
    run, progress = started(tmp_path), Told()
    (run.directory / journal.FILE_NAME).mkdir()
    train_run(run, Plan.of(run.options), progress)
    assert run.finished
    assert "was not written to its end: Is a directory" in progress.lines[-1]


def test_a_line_is_in_the_file_as_soon_as_its_step_is_taken(tmp_path):
    """Programs follow the log of a run that goes on, and a run that is killed keeps it."""
    counts = []

    class Counts(Progress):
        def stepped(self, run, taken, seconds):
            counts.append(len(log_of(run.directory)))

    trained(started(tmp_path), Counts())
    assert all(later - before == 1 for before, later in pairwise(counts))
    assert counts[0] == 0
