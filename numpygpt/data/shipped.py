"""Files that ship with numpygpt, compressed: GPT-2's ranks and the story that the book's chapter 5 learns from.

A file beside each, of the same name with LICENSE or NOTICE, says where it comes from and on what terms.
"""

import gzip
import os
import zlib
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from numpygpt.errors import InputError
from numpygpt.reading import read_file


def shipped(name: str) -> Path:
    """Where the file of this name ships, compressed with gzip: `NAME.gz`."""
    return Path(str(files("numpygpt.data") / f"{name}.gz"))


def read_unpacked(path: str | os.PathLike[str], what: str) -> bytes:
    """The bytes of a file, unpacked if the file is named `NAME.gz`.

    what   what the file is, for messages: "text file"

    Raises InputError as `read_file` does, and for a compressed file that is damaged.
    """
    contents = read_file(path, what)
    if Path(path).suffix != ".gz":
        return contents
    try:
        return gzip.decompress(contents)
    except (OSError, EOFError, zlib.error) as error:  # an OSError: not gzip at all, or a wrong checksum
        raise InputError(f"the {what} {path} is damaged or not compressed with gzip: {error}") from error


def read_exactly(path: str | os.PathLike[str] | None, shipped_name: str, what: str, expected: str) -> bytes:
    """The bytes of the file `path`, or, if it is None, of the shipped file. Their SHA-256 must be `expected`.

    what   what the file is, for messages

    Raises InputError as `read_unpacked` does, and for other bytes.
    """
    remedy = "install numpygpt again" if path is None else "name no file, and the one that ships with numpygpt is taken"
    path = shipped(shipped_name) if path is None else path
    try:
        contents = read_unpacked(path, what)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from error
    found = sha256(contents).hexdigest()
    if found != expected:
        raise InputError(
            f"the {what} {path} is damaged or another file: {len(contents)} bytes with sha256 {found}, "
            f"expected {expected}; {remedy}"
        )
    return contents
