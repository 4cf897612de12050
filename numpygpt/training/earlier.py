"""The checkpoints of a run before its last, by step: DIR/earlier/step-0000000000300.safetensors.

The number is the step, with as many digits as the largest has, so that names sort as steps do. A checkpoint comes here
when the next one is about to take its place, and under its first name it stays until then. So whenever a run is killed,
its last checkpoint is where it always is; at worst it is here, too.
"""

import re
from contextlib import suppress
from pathlib import Path

from numpygpt.errors import InputError
from numpygpt.files import name_also, remove_abandoned
from numpygpt.formats.checkpoint import FILE_NAME
from numpygpt.training.declared import LARGEST_COUNT

FOLDER = "earlier"
DIGITS = len(str(LARGEST_COUNT))
NAME = re.compile(rf"step-(\d{{{DIGITS}}})\.safetensors")


def path_of(directory: Path, step: int) -> Path:
    """Where the checkpoint of this step is among the earlier ones of the run in `directory`."""
    return directory / FOLDER / f"step-{step:0{DIGITS}}.safetensors"


def steps(directory: Path) -> list[int]:
    """The steps of the earlier checkpoints, sorted. Files of other names are none of them."""
    folder = directory / FOLDER
    found = [NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in found if match)


def keep(directory: Path, step: int) -> None:
    """Keep the last checkpoint, which is of this step, among the earlier ones. OSError if that fails."""
    path = path_of(directory, step)
    path.parent.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):  # somebody has removed the last checkpoint, so there is none to keep
        name_also(directory / FILE_NAME, path)


def prune(directory: Path, step: int, count: int) -> None:
    """Keep the newest `count` of the checkpoints before this step, which is that of the last checkpoint.

    One of this step itself is the last checkpoint once more, and is removed, too. Those of later steps are left alone:
    somebody has put an earlier checkpoint in the place of the last one, and may want them.

    Raises InputError if a file cannot be removed.
    """
    found = [earlier for earlier in steps(directory) if earlier <= step]
    kept = [earlier for earlier in found if earlier < step][-count:] if count else []
    _remove(directory, [earlier for earlier in found if earlier not in kept])


def remove_all(directory: Path) -> None:
    """Remove every earlier checkpoint. InputError if that fails."""
    _remove(directory, steps(directory))


def _remove(directory: Path, unwanted: list[int]) -> None:
    folder = directory / FOLDER
    remove_abandoned(folder)
    for path in (path_of(directory, step) for step in unwanted):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"cannot remove the earlier checkpoint {path}: {error.strerror}") from error
    with suppress(OSError):  # it is not there, or something else is in it
        folder.rmdir()
