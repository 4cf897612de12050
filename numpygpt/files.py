"""Files: read where they are files, and replaced in one step."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from numpygpt.errors import InputError


def read_file(path: str | os.PathLike[str], what: str) -> bytes:
    """The bytes of a regular file.

    what   what the file is, for the message: "text file"

    Raises InputError for a file that is missing or cannot be read, for a folder, and for a pipe or a device, which
    might never end.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise InputError(f"cannot read the {what} {path}: it is a pipe or a device; give a regular file")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file to, which then replaces `path` in one step, or vanishes if anything is raised.

    What a killed process leaves behind is the folder `.NAME.unfinished`, which the next call removes. It is a
    folder because safetensors itself writes by way of a temporary file beside its target.
    """
    workshop = _workshop(path)
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


def _workshop(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


def _flush_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: Path) -> None:
    """Find out before long work whether `write_text` or `replacing` can write the file.

    Raises InputError if its name is too long, if there is no folder for it or one that is read-only, and if something
    else than a regular file has its name.
    """
    try:
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it, or name another")
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise InputError(f"cannot write {path}: it is a pipe or a device; name a regular file")
        _workshop(path).exists()  # fails if its name, which is longer, is too long
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another") from error
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: the folder {path.parent} is read-only; name another")


def write_text(path: Path, text: str) -> None:
    """Write the file whole, in UTF-8, in place of an older one. InputError where that fails."""
    try:
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another") from error
