"""Runs that are killed, stopped, or find the disk full at any moment: nothing is lost, and they go on bit for bit.

`make survival-long` kills 200 times and stops 50 times, at random moments.
"""

import json
import re
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from numpygpt.formats.checkpoint import FILE_NAME
from numpygpt.training import earlier
from numpygpt.training.run import BEST, TrainingRun
from parity_tests import tiny_run
from parity_tests.command import TRAINING, but_the_log, files, python, run, write_text

SCRIPT = (sys.executable, "-m", "parity_tests.tiny_run")
ROOT = Path(__file__).parents[1]


def number_of(few, many):
    """How often something is tried, and a generator: `few` times in the suite, with a fixed seed; `many` at length."""
    is_long = settings.get_current_profile_name() == "long"
    return many if is_long else few, np.random.default_rng(None if is_long else 1)


@contextmanager
def server(folder):
    """A run of four steps in folder/run, and a function that gives an order to its process: see `tiny_run.serve`.

    At the end the run must be the one that was never interrupted.
    """
    command = [*SCRIPT, "serve", folder / "run", write_text(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def order(*words):
            print(*words, file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield order
        resumed, whole = json.loads(process.communicate()[0])
    assert resumed == whole


def assert_tidy(directory, step):
    """Nothing is in the folder except the last checkpoint, the two before it, and the best one."""
    kept = [str(earlier.path_of(Path(), before)) for before in (step - 2, step - 1)]
    expected = [BEST, f"{BEST}/{FILE_NAME}", FILE_NAME, earlier.FOLDER, *kept]
    assert sorted(str(path.relative_to(directory)) for path in directory.rglob("*")) == sorted(expected)


# Killed


@pytest.mark.long_run
def test_a_run_that_is_killed_while_it_saves_again_and_again_is_the_run_that_never_was(tmp_path):
    kills, rng = number_of(5, 200)
    last, unfinished = 4, 0
    with server(tmp_path) as order:
        for seconds in rng.uniform(0, 0.1, kills):
            end, step, before = order("after", seconds)
            assert end == tiny_run.KILLED
            assert step > last, "it saved at least once before it was killed"
            assert {step - 2, step - 1} <= set(before) <= set(range(step + 1))
            last = step
            unfinished += any((tmp_path / "run").rglob(f"{tiny_run.UNFINISHED}*"))
        assert order("kill", 10**6)[0] == tiny_run.DONE
        assert_tidy(tmp_path / "run", last + 1)
    assert kills == 5 or unfinished > kills / 4, "many kills came in the middle of a save"


# Before each operation on a file


def interrupted_everywhere(order, what):
    """Interrupt each child one operation later than the one before it, until one does all that it wanted to do.

    Returns how the children ended, and the last step.
    """
    ends, last = [], 4
    while tiny_run.DONE not in ends:
        end, step, before = order(what, len(ends) + 1)
        assert step in (last, last + 1)
        assert {step - 2, step - 1} <= set(before) <= set(range(step + 1))
        ends.append(end)
        last = step
    return ends, last


def test_a_run_that_is_killed_before_any_operation_on_a_file_goes_on(tmp_path):
    with server(tmp_path) as order:
        ends, last = interrupted_everywhere(order, "kill")
        assert_tidy(tmp_path / "run", last)
    assert set(ends[:-1]) == {tiny_run.KILLED}


def test_a_disk_that_is_full_at_any_operation_on_a_file_loses_no_checkpoint(tmp_path):
    """Some operations only tidy up. If such a one fails, the save goes on, and the next one does it again."""
    with server(tmp_path) as order:
        ends, last = interrupted_everywhere(order, "fill")
        assert order("kill", 10**6)[0] == tiny_run.DONE
        assert_tidy(tmp_path / "run", last + 1)
    refused = [end for end in ends if end not in (tiny_run.UNIMPAIRED, tiny_run.DONE)]
    assert len(refused) > 5
    cannot = "refused: cannot (write the checkpoint|remove the earlier checkpoint) .*No space left on device.*"
    for line in refused:
        assert re.fullmatch(cannot, line)


LIMIT = 10_000  # bytes, less than a checkpoint of the command's tests


def test_a_file_that_the_system_cuts_short_costs_no_checkpoint(tmp_path, monkeypatch):
    """The write itself fails in the middle, as on a full disk."""
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")
    assert run("train", "--text", write_text(tmp_path), *TRAINING, "--keep", 2, "--out", tmp_path / "run") == 0
    before = files(tmp_path)
    done = python(
        *("-B", "-m", "numpygpt", "train", "--resume", tmp_path / "run", "--steps", 5, "--save-every", 1),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT)),
    )
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    path = re.escape(str(tmp_path / "run" / FILE_NAME))
    assert re.fullmatch(rf"numpygpt: error: cannot write the checkpoint {path}: .*File too large.*", line)
    assert "Traceback" not in done.stderr
    assert but_the_log(files(tmp_path)) == but_the_log(before)
    assert run("train", "--resume", tmp_path / "run", "--steps", 5) == 0


# Stopped


def digests(*arguments):
    """The digest after each step of a process."""
    done = python(*SCRIPT[1:], *arguments, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return {int(step): digest for step, digest in map(str.split, done.stdout.splitlines())}


@pytest.mark.long_run
def test_a_run_that_is_stopped_at_any_moment_and_resumed_in_a_new_process_goes_on_bit_for_bit(tmp_path):
    """Ctrl-C comes in a micro-batch of a step. The step is finished and saved: only a whole step has a state."""
    stops, rng = number_of(2, 50)
    latest, following = (15, 30) if stops == 2 else (100, 200)
    accumulate = tiny_run.OPTIONS["accumulate"]
    text = write_text(tmp_path)
    whole = digests("train", tmp_path / "whole", text, latest + following)
    assert len(set(whole.values())) == latest + following
    for stop in rng.choice(accumulate * latest, size=stops, replace=False).tolist():
        folder, step = tmp_path / f"stopped in {stop}", stop // accumulate + 1
        before = digests("train", folder, text, latest + following, stop + 1)
        assert list(before) == list(range(1, step + 1))
        after = digests("resume", folder, step + following)
        assert list(after) == list(range(step + 1, step + following + 1))
        assert before | after == {done: digest for done, digest in whole.items() if done <= step + following}
