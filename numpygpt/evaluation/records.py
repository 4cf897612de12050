"""Reading the records of an evaluation: a JSON object in each line of a file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpygpt.data.texts import read_text
from numpygpt.errors import InputError


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each record is, for messages, and the record. Empty lines are left out.

    Raises InputError for a file that cannot be read, and for a line that is no JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"line {number} of {path}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place} is no JSON: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"{place} holds a {type(record).__name__}; expected a JSON object")
        yield place, record


def text_of(record: dict[str, Any], field: str, place: str) -> str:
    """The text of a field. InputError, which says where, if it is missing, empty or no text."""
    text = record.get(field)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{place}: the field {field} is {text!r:.60}; expected a text")
    return text
