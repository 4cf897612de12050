"""Files that ship with numpygpt, compressed: GPT-2's ranks and the story that the book's chapter 5 learns from.

A file beside each, of the same name with LICENSE or NOTICE, says where it comes from and on what terms.
"""

import gzip
import os
import zlib
from hashlib import sha256
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from numpygpt.errors import InputError
from numpygpt.reading import read_file

#: A file is unpacked to at most so many times its size. gzip makes a third or a quarter of prose, but a thousandth of a
#: file that was made to fill the memory of who unpacks it.
MOST_TIMES = 100
#: But up to so many bytes, a file may unpack to any number of times its size.
ALWAYS_UNPACKED = 2**24
#: Bytes that are unpacked at a time.
PIECE = 2**20


def shipped(name: str) -> Path:
    """Where the file of this name ships, compressed with gzip: `NAME.gz`."""
    return Path(str(files("numpygpt.data") / f"{name}.gz"))


def read_unpacked(path: str | os.PathLike[str], what: str, most: int | None = None) -> bytes:
    """The bytes of a file, unpacked if the file is named `NAME.gz`.

    what   what the file is, for messages: "text file"
    most   the most bytes that such a file has, unpacked; None: any number, but MOST_TIMES those of a compressed file

    Raises InputError as `read_file` does, for a compressed file that is damaged, and for one that would unpack to more
    bytes, of which no more are unpacked.
    """
    if Path(path).suffix != ".gz":
        return read_file(path, what, most)
    contents = read_file(path, what)
    limit = max(MOST_TIMES * len(contents), ALWAYS_UNPACKED) if most is None else most
    try:
        unpacked = _unpacked(contents, limit)
    except (OSError, EOFError, zlib.error) as error:  # an OSError: not gzip at all, or a wrong checksum
        raise InputError(f"the {what} {path} is damaged or not compressed with gzip: {error}") from error
    if len(unpacked) <= limit:
        return unpacked
    if most is not None:
        raise InputError(f"the {what} {path} unpacks to more than {most} bytes; such a file has fewer")
    raise InputError(
        f"the {what} {path} has {len(contents)} bytes and unpacks to more than {limit}, which few texts do; "
        f"if it is one, unpack it yourself and name the unpacked file"
    )


def _unpacked(contents: bytes, most: int) -> bytes:
    """What gzip packed. If these are more than `most` bytes, the first of them, which are more than that, too."""
    unpacked = bytearray()
    with gzip.open(BytesIO(contents)) as file:
        while len(unpacked) <= most and (piece := file.read(PIECE)):
            unpacked += piece
    return bytes(unpacked)


def read_exactly(
    path: str | os.PathLike[str] | None, shipped_name: str, what: str, expected: str, length: int
) -> bytes:
    """The bytes of the file `path`, or, if it is None, of the shipped file. Their SHA-256 must be `expected`.

    what     what the file is, for messages
    length   how many bytes have that SHA-256; a longer file is not read to its end

    Raises InputError as `read_unpacked` does, and for other bytes.
    """
    remedy = "install numpygpt again" if path is None else "name no file, and the one that ships with numpygpt is taken"
    path = shipped(shipped_name) if path is None else path
    try:
        contents = read_unpacked(path, what, length)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from error
    found = sha256(contents).hexdigest()
    if found != expected:
        raise InputError(
            f"the {what} {path} is damaged or another file: {len(contents)} bytes with sha256 {found}, "
            f"expected {expected}; {remedy}"
        )
    return contents
