"""Records of files: each is a JSON object, in a JSON array or in a line of its own.

    [{"instruction": "Add 1 and 2.", "output": "3"},          {"instruction": "Add 1 and 2.", "output": "3"}
     {"instruction": "Add 2 and 3.", "output": "5"}]          {"instruction": "Add 2 and 3.", "output": "5"}

A file is read part by part, so that its text is never in memory as a whole. A file whose name ends in `.gz` is
unpacked. What is wrong with a record is told in one line with its place: "record 2 of FILE", counted from 1, or
"line 2 of FILE".
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from json.decoder import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.data.tokenizing import characters
from numpygpt.errors import InputError

#: JSON's own white space. Python's has more.
WHITE_SPACE = " \t\n\r"
BYTE_ORDER_MARK = "\ufeff"
#: An incomplete word, such as `fals` or `-Infinit`, begins fewer characters before the end of a text.
LONGEST_WORD = len("-Infinity")


class Line(NamedTuple):
    """A line of a file, and where it is, for messages."""

    place: str
    text: str


class Record(NamedTuple):
    """A JSON object of a file, and where it is, for messages."""

    place: str
    fields: dict[str, Any]


# Fields


def text_of(record: dict[str, Any], field: str, place: str, *, may_be_empty: bool = False) -> str:
    """The text of a field. InputError, which says where, if it is missing, no text, or empty where it may not be."""
    text = record.get(field, "" if may_be_empty else None)
    if not isinstance(text, str) or not (may_be_empty or text.strip()):
        found = f"is {text!r:.60}" if field in record else "is missing"
        raise InputError(f"{place}: the field {field} {found}; expected a text")
    return text


# Files


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, one after another: of a JSON array if the file begins with [, or else one in each line.

    Raises InputError for a file that cannot be read or has no record, and, with its place, for what is no JSON object.
    """
    texts, begin = _texts(path), ""
    while not begin.strip() and (text := next(texts, None)) is not None:
        begin += text
    if not begin.strip():
        raise InputError(f"{path} has no record; expected a JSON array of objects, or a JSON object in each line")
    if begin.lstrip().startswith("["):
        yield from _of_array(path, chain([begin], texts))
    else:
        for place, line in _lines(path, chain([begin], texts)):
            yield Record(place, json_object(line, place))


def lines_of(path: Path) -> Iterator[Line]:
    """The lines of a file, without the empty ones. InputError for a file that cannot be read."""
    return _lines(path, _texts(path))


def every_line(path: Path) -> Iterator[str]:
    """The lines of a file, each without its end. InputError for a file that cannot be read."""
    return _every_line(_texts(path))


def json_object(text: str, place: str) -> dict[str, Any]:
    """The JSON object in a text. InputError, which says where, for anything else."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is no JSON: {error}") from error
    return _object(record, place)


def _texts(path: Path) -> Iterator[str]:
    """The text of a file in parts, without the byte order mark with which some programs begin it."""
    texts = characters([path])
    yield next(texts, "").removeprefix(BYTE_ORDER_MARK)
    yield from texts


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{place} holds a {type(value).__name__}; expected a JSON object")
    return value


def _lines(path: Path, texts: Iterable[str]) -> Iterator[Line]:
    for number, line in enumerate(_every_line(texts), 1):
        if line.strip():
            yield Line(f"line {number} of {path}", line)


def _every_line(texts: Iterable[str]) -> Iterator[str]:
    held = ""
    for text in chain(texts, "\n"):  # the last line may have no end
        *lines, held = (held + text).split("\n")
        yield from lines


def _of_array(path: Path, texts: Iterable[str]) -> Iterator[Record]:
    text = _Text(texts)
    text.take()  # the bracket that opens the array
    if text.next_symbol() == "]":
        raise InputError(f"{path} has no record; expected at least one in its array")
    number, symbol = 0, ","
    while symbol == ",":
        number += 1
        place = f"record {number} of {path}"
        yield Record(place, _object(_value(text, place), place))
        symbol = text.take()
    if symbol != "]":
        found = repr(symbol) if symbol else "the end of the file"
        raise InputError(f"after record {number} of {path} comes {found}; expected a comma, or ] where the array ends")
    if symbol := text.next_symbol():
        raise InputError(f"after the array in {path} comes {symbol!r}; expected the end of the file")


def _value(text: "_Text", place: str) -> Any:
    try:
        return text.value()
    except (ValueError, RecursionError) as error:  # its position would be that in a part of the file
        raise InputError(f"{place} is no JSON: {getattr(error, 'msg', error)}") from error


class _Text:
    """A text that comes in parts. What is decoded of it is not kept."""

    def __init__(self, parts: Iterable[str]) -> None:
        self._parts, self._held, self._at = iter(parts), "", 0
        self._decoder = JSONDecoder()

    def next_symbol(self) -> str:
        """The next character that is no white space; empty at the end of the text."""
        while True:
            while self._at < len(self._held) and self._held[self._at] in WHITE_SPACE:
                self._at += 1
            if self._at < len(self._held) or not self._grow():
                return self._held[self._at : self._at + 1]

    def take(self) -> str:
        """The same character, which is then behind us."""
        symbol = self.next_symbol()
        self._at += len(symbol)
        return symbol

    def value(self) -> Any:
        """The JSON value that comes next. JSONDecodeError if there is none."""
        self.next_symbol()
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._held, self._at)
                return value
            except JSONDecodeError as error:
                at_the_end = error.pos >= len(self._held) - LONGEST_WORD or error.msg.startswith("Unterminated string")
                if not (at_the_end and self._grow()):
                    raise

    def _grow(self) -> bool:
        """Take at least as much again as is held, so that a long value is not begun often. Whether there was any."""
        rest = self._held[self._at :]
        more: list[str] = []
        while sum(map(len, more)) <= len(rest) and (part := next(self._parts, None)) is not None:
            more.append(part)
        self._held, self._at = rest + "".join(more), 0
        return len(self._held) > len(rest)
