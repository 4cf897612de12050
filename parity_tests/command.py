"""The command line at sizes that take a second. `run` runs in this process what a person would type."""

import subprocess
import sys
from pathlib import Path

from numpygpt.commands.main import main

TEXT = "The cat sat on the mat, and the dog lay by the door of the old house in the rain. " * 6
SIZES = ("--context-length", 6, "--emb-dim", 8, "--n-heads", 2, "--n-layers", 1, "--batch-size", 3, "--eval-batches", 1)
#: These options turn samples off, because samples take longer than the training.
TRAINING = (*SIZES, "--steps", 3, "--warmup-steps", 1, "--sample-every", 0)


def run(*arguments):
    """The exit status of `numpygpt arguments...`."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's own errors
        return stop.code


def python(*arguments, **options):
    """Run a new Python, which lacks the checks that the test run installs."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300, **options
    )


def write_text(folder, text=TEXT):
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8")
    return path


def files(folder):
    """Every file under the folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def but_the_log(found):
    """The files without log.jsonl, which has a line also for a step that no checkpoint has."""
    return {name: contents for name, contents in found.items() if Path(name).name != "log.jsonl"}
