"""Files that are replaced in one step."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from numpygpt.errors import InputError

# Files that are replaced in one step


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file to, which then replaces `path` in one step, or vanishes if anything is raised.

    What a killed process leaves behind is the folder `.NAME.unfinished`, which the next call removes. It is a
    folder because safetensors itself writes by way of a temporary file beside its target.
    """
    workshop = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(workshop, ignore_errors=True)
    workshop.mkdir()
    try:
        unfinished = workshop / path.name
        yield unfinished
        _flush_to_disk(unfinished)
        unfinished.replace(path)
        _flush_to_disk(path.parent)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: Path) -> None:
    """Raise InputError where there is no folder for the file, or a folder in its place, or none that may be written."""
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it, or name another")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a file in it")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: the folder {path.parent} is read-only; name another")


def write_text(path: Path, text: str) -> None:
    """Write the file whole, in UTF-8, in place of an older one. InputError where that fails."""
    try:
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another") from error
