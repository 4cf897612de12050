"""Reading files: only regular ones are read, and every other gets one line that says why not."""

import os
import stat
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
