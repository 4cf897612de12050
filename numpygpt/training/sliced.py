"""The checkpoints of a run that are in slices: DIR/slices/step-0000000000300, a folder for each step.

They are checkpoints on the way of a run in many processes, each of which writes its own slices
(`numpygpt.formats.slices`). When the whole checkpoint after them is written, they go.
"""

import re
import shutil
from pathlib import Path

from numpygpt.errors import InputError
from numpygpt.training.earlier import DIGITS

FOLDER = "slices"
NAME = re.compile(rf"step-(\d{{{DIGITS}}})")


def path_of(directory: Path, step: int) -> Path:
    """Where the slices of this step are."""
    return directory / FOLDER / f"step-{step:0{DIGITS}}"


def steps(directory: Path) -> list[int]:
    """The steps of which there are slices, sorted. A folder has its name when all of it is written."""
    folder = directory / FOLDER
    found = [NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in found if match)


def prune(directory: Path, step: int, count: int) -> None:
    """Keep the slices of this step and of the newest ones before it, `count` in all; others of earlier steps go."""
    found = [found for found in steps(directory) if found <= step]
    _remove([path_of(directory, old) for old in found[:-count]])


def remove(directory: Path, step: int) -> None:
    """Remove the slices of this step. InputError if that fails."""
    _remove([path_of(directory, step)])


def remove_all(directory: Path) -> None:
    """Remove all slices. InputError if that fails."""
    if (directory / FOLDER).is_dir():
        _remove([directory / FOLDER])


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise InputError(f"cannot remove the slices in {folder}: {error.strerror}") from error
