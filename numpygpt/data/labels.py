"""Labeled texts: what a classifier learns from. A file has one of these forms, told apart by its name.

    NAME.json, NAME.jsonl   {"text": ..., "label": ...}
    NAME.csv                lines of commas and quotes, with a first line that names the columns Text and Label
    NAME.tsv                a label, a tab and a text in each line, as in the SMS Spam Collection of the book (ch. 6)

A label is the number of a class, from 0, or its name. A file that is compressed is called NAME.csv.gz, for example.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numpygpt.data.examples import Example, Kept, Limit
from numpygpt.data.records import Record, every_line, lines_of, read_records, text_of
from numpygpt.data.tokenizer import Encoding
from numpygpt.errors import InputError
from numpygpt.shapes import Array, Integer

#: No number of a class has so many digits.
MOST_DIGITS = 9


class LabeledText(NamedTuple):
    """A text and the number of its class."""

    token_ids: Integer[Array, "T"]
    label: int


def read_labeled_texts(path: Path, classes: int | Sequence[str], tokenizer: Encoding, limit: Limit) -> Kept:
    """The labeled texts of a file.

    classes   the names of the classes, in the order of their numbers; or how many there are, if they have no names
    limit     how long a text may be

    Raises InputError for a file that cannot be read, and, with its place, for a record that lacks its text or label, a
    label outside the classes, and a text that is too long.
    """
    names = [str(number) for number in range(classes)] if isinstance(classes, int) else list(classes)
    if len(set(names)) < max(2, len(names)):
        raise InputError(
            f"the classes are {', '.join(names) or 'none':.80}; expected at least two, each with its own name"
        )
    texts = []
    for place, record in labeled_records(path):
        label = label_of(record, place, names)
        token_ids = np.array(tokenizer.encode_ordinary(text_of(record, "text", place)), np.int64)
        fitted = limit.fitted([Example.without_answer(token_ids)], place)
        texts += [LabeledText(example.token_ids, label) for example in fitted or []]
    return limit.kept(texts, path)


def label_of(record: dict[str, Any], place: str, names: Sequence[str]) -> int:
    """The number of the class that a record names. InputError, which says where, for a label outside the classes."""
    label = record.get("label")
    if isinstance(label, str) and label in names:
        return names.index(label)
    number = int(label) if isinstance(label, str) and label.isdecimal() and len(label) <= MOST_DIGITS else label
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(names):
        found = f"is {label!r:.60}" if "label" in record else "is missing"
        have_names = any(name != str(number) for number, name in enumerate(names))
        or_names = f", or one of: {', '.join(names):.200}" if have_names else ""
        raise InputError(f"{place}: the field label {found}; expected a number from 0 to {len(names) - 1}{or_names}")
    return number


def labeled_records(path: Path) -> Iterator[Record]:
    """The records of a file in one of the forms, with the fields "text" and "label". InputError as the file's form."""
    form = Path(path.name.removesuffix(".gz")).suffix
    if form == ".csv":
        return records_of_columns(path)
    if form == ".tsv":
        return _of_tabs(path)
    return read_records(path)


def _of_tabs(path: Path) -> Iterator[Record]:
    found = False
    for place, line in lines_of(path):
        label, tab, text = line.partition("\t")
        if not tab:
            raise InputError(f"{place} is {line!r:.60}; expected a label, a tab and a text")
        yield Record(place, {"label": label, "text": text})
        found = True
    if not found:
        raise InputError(f"{path} has no record; expected a label, a tab and a text in each line")


def records_of_columns(path: Path) -> Iterator[Record]:
    """The records of a CSV file, by the names of its columns in small letters: "text", "label" and any others.

    Raises InputError for a file that cannot be read, lacks one of the two columns or has no record, and for a line with
    another number of columns.
    """
    rows = csv.reader((f"{line}\n" for line in every_line(path)), strict=True)
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        if not {"text", "label"} <= set(names):
            raise InputError(
                f"the first line of {path} names the columns {', '.join(names) or 'none'}; expected Text and Label"
            )
        found = False
        for row in filter(None, rows):
            place = f"line {rows.line_num} of {path}"
            if len(row) != len(names):
                raise InputError(f"{place} has {len(row)} columns; expected {len(names)}")
            yield Record(place, dict(zip(names, row, strict=True)))
            found = True
    except csv.Error as error:
        raise InputError(f"line {rows.line_num} of {path} is not as in a CSV file: {error}") from error
    if not found:
        raise InputError(f"{path} has no record; expected at least one after its first line")
