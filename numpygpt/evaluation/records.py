"""Reading the records of an evaluation: each line of a file is one, as a text or as a JSON object."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.data.texts import read_text
from numpygpt.errors import InputError


class Line(NamedTuple):
    """A line of a file, and where it is, for messages."""

    place: str
    text: str


def lines_of(path: Path) -> Iterator[Line]:
    """The lines of a file, without the empty ones. InputError for a file that cannot be read."""
    for number, text in enumerate(read_text(path).split("\n"), 1):
        if text.strip():
            yield Line(f"line {number} of {path}", text)


def json_object(text: str, place: str) -> dict[str, Any]:
    """The JSON object in a text. InputError, which says where, for anything else."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"{place} holds a {type(record).__name__}; expected a JSON object")
    return record


def text_of(record: dict[str, Any], field: str, place: str) -> str:
    """The text of a field. InputError, which says where, if it is missing, empty or no text."""
    text = record.get(field)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{place}: the field {field} is {text!r:.60}; expected a text")
    return text
