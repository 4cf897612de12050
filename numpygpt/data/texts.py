"""Texts to learn from: files, and the prose that comes with Python."""

import os
from collections.abc import Iterable
from pathlib import Path

from numpygpt.data.shipped import read_unpacked
from numpygpt.errors import InputError


def python_reference_text() -> str:
    """The Python language reference, which CPython carries for `help()`: about 465,000 characters of prose.

    These are the topics of the module pydoc_data.topics, in alphabetical order, with an empty line between
    them. The text differs a little between versions of Python.

    Raises InputError if this Python comes without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError(
            "this Python comes without its language reference (the module pydoc_data.topics); "
            "give a text of your own with --text FILE"
        ) from error
    return "\n\n".join(topics[name] for name in sorted(topics))


def read_text(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> str:
    """The text of one UTF-8 file, or of several, with nothing between them.

    A file whose name ends in `.gz` is unpacked. Every kind of line end becomes a newline.

    Raises InputError if there are no files, and for a file that is missing, not a regular file, damaged, not UTF-8 or
    empty.
    """
    files = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not files:
        raise InputError("no text file was given; expected at least one")
    return "".join(_read_file(Path(file)) for file in files)


def _read_file(path: Path) -> str:
    try:
        text = read_unpacked(path, "text file").decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"the text file {path} is not UTF-8: found byte {error.object[error.start]:#04x} "
            f"at offset {error.start}; convert the file to UTF-8"
        ) from error
    if not text:
        raise InputError(f"the text file {path} is empty; expected text to learn from")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def split_text(text: str, train_ratio: float = 0.9) -> tuple[str, str]:
    """The text in two parts: the first `train_ratio` of its characters for training, the rest for validation.

    Raises InputError for a ratio outside (0, 1), and for a text that is too short for a character in each part.
    """
    if not 0 < train_ratio < 1:
        raise InputError(f"train_ratio is {train_ratio}; expected a number between 0 and 1")
    end = int(train_ratio * len(text))
    if not 0 < end < len(text):
        raise InputError(
            f"a text of {len(text)} characters cannot be split at {train_ratio}, one part is empty: give more"
        )
    return text[:end], text[end:]
