"""Text files that a command is asked to write: refused before the work where they cannot be, and written at once."""

import os
from pathlib import Path

from numpygpt.checkpoint import replacing
from numpygpt.errors import InputError


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
