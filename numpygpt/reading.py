"""Reading files: only regular ones are read, and every other gets one line that says why not."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from numpygpt.errors import InputError

#: The longest name of a file, in characters, that a file system takes.
LONGEST_NAME = 255


def read_file(path: str | os.PathLike[str], what: str, most: int | None = None) -> bytes:
    """The bytes of a regular file.

    what   what the file is, for the message: "text file"
    most   the most bytes that such a file has; None: any number

    Raises InputError for a file that is missing or cannot be read, for a folder, for a pipe or a device, which might
    never end, and for a file with more than `most` bytes, of which no more are read.
    """
    path = Path(path)
    refuse_irregular(path, what)
    try:
        with path.open("rb") as file:
            contents = file.read() if most is None else file.read(most + 1)
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror}") from error
    if most is not None and len(contents) > most:
        raise InputError(f"cannot read the {what} {path}: it has more than {most} bytes; such a file has fewer")
    return contents


def refuse_irregular(path: Path, what: str) -> None:
    """InputError for a file that is missing or cannot be looked at, and for a pipe or a device."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"cannot read the {what} {path}: it is a pipe or a device; give a regular file")


def read_json(path: str | os.PathLike[str], what: str, most: int) -> dict[str, Any]:
    """The JSON object in a regular file of at most `most` bytes.

    Raises InputError as `read_file`, for what is no JSON, and for another JSON value than an object.
    """
    contents = read_file(path, what, most)
    try:
        found = json.loads(contents)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the {what} {path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"the {what} {path} holds a {type(found).__name__}; expected a JSON object")
    return found


def inside(folder: Path, name: str) -> Path:
    """The path of a file of that name in the folder.

    Raises InputError for a name that is no plain name, and for a link that leads out of the folder. Within the cache
    that `huggingface_hub` keeps, a link from models--NAME/snapshots/REVISION may lead to anywhere in models--NAME.
    """
    path = folder / name
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name) > LONGEST_NAME:
        raise InputError(f"{folder} names the file {name!r:.80}; expected the plain name of a file in that folder")
    try:
        home, found = folder.resolve(), path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise InputError(f"{path} cannot be read: it is a link that leads nowhere") from error
    snapshots = home.parent
    if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
        home = snapshots.parent
    if not found.is_relative_to(home):
        raise InputError(f"{path} is a link out of its folder, to {found}, and is not followed; put the file there")
    return path
