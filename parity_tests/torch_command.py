"""`numpygpt train` and `torchgpt train` at sizes that take a second, and what they leave.

torchgpt runs in this process, and numpygpt in one of its own (`parity_tests.command_child`).
"""

import atexit
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from numpygpt.formats.checkpoint import read_checkpoint, write_checkpoint
from numpygpt.sections import Section
from numpygpt.training.journal import FILE_NAME as LOG_NAME
from torchgpt.commands.main import main

PROGRAMS = ("numpygpt", "torchgpt")
SECTIONS = ("model", "optimizer", "random", "data", "run", "torch")
ROOT = Path(__file__).parents[1]
#: The parameters, which an epoch of 25 batches shows to two blocks.
SIZES = ("--context-length", 6, "--emb-dim", 8, "--n-heads", 2, "--n-layers", 2, "--batch-size", 3, "--eval-batches", 1)
#: Nothing but steps.
QUIET = ("--eval-every", 1000, "--sample-every", 0, "--save-every", 0)
#: Two micro-batches make a step, so some steps span two epochs.
EXACT = (*SIZES, "--dtype", "float64", "--drop-rate", 0.1, "--accumulate", 2, *QUIET)


def run(program, *arguments):
    """The exit status of a command of either program. torchgpt computes on the CPU, unless a device is named."""
    words = [str(argument) for argument in arguments]
    if program == "numpygpt":
        return _in_numpy(words)
    return main(words if "--device" in words else [*words, "--device", "cpu"])


def _in_numpy(words):
    child = _child()
    child.stdin.write(json.dumps(words) + "\n")
    child.stdin.flush()
    status, out, err = json.loads(child.stdout.readline())
    print(out, end="")
    print(err, end="", file=sys.stderr)
    return status


@cache
def _child():
    command = [sys.executable, "-m", "parity_tests.command_child"]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(child.communicate)
    return child


def train(program, folder, *arguments):
    """Train in the folder, which has to go well; returns the folder."""
    text = () if "--tokens" in arguments or "--resume" in arguments else ("--text", folder.parent / "text.txt")
    where = () if "--resume" in arguments else ("--out", folder)
    assert run(program, "train", *text, *where, *arguments) == 0
    return folder


def log_of(folder):
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()]


def curve(folder, first=0):
    """The losses and the norms of the gradients of a run, from the step after `first` on."""
    lines = log_of(folder)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [(line["loss"], line["grad_norm"]) for line in lines[first:]]


def furthest(ours, expected):
    """The largest difference between numbers of two curves."""
    assert len(ours) == len(expected) > 0
    return max(abs(a - b) for pair in zip(ours, expected, strict=True) for a, b in zip(*pair, strict=True))


def sections_of(folder):
    """{section: (its values, its arrays as bytes)} of the checkpoint in the folder."""
    saved = read_checkpoint(folder)
    return {
        name: (saved.values(name), {key: array.tobytes() for key, array in saved.arrays(name).items()})
        for name in SECTIONS
        if name in saved
    }


def rewritten(folder, change):
    """Write the checkpoint in the folder anew after a change of its sections."""
    saved = read_checkpoint(folder)
    sections = {name: Section(saved.values(name), saved.arrays(name)) for name in SECTIONS if name in saved}
    change(sections)
    write_checkpoint(folder, sections)


def left_by(folder):
    """Every file of a run with its bytes, without what tells the time that steps took and without the picture."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".png", ".jsonl")
    }


def refusal(capsys, program, *arguments):
    """The one line with which a command refuses what it was given. What it has shown before is left out."""
    capsys.readouterr()
    assert run(program, *arguments) == 2
    printed = capsys.readouterr()
    (line,) = re.findall(rf"^{program}(?: train)?: error: .*$", printed.err, re.MULTILINE)
    assert printed.err.endswith(f"{line}\n")
    assert "Traceback" not in printed.err
    return line
