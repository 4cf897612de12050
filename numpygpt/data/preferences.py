"""Preference records: two answers to one prompt, of which the first was preferred. Each has one of these forms.

    {"prompt": ..., "chosen": ..., "rejected": ...}
    {"instruction": ..., "input": ..., "chosen": ..., "rejected": ...}
    {"prompt": [messages], "chosen": [an answer], "rejected": [an answer]}
    {"chosen": [messages, the last an answer], "rejected": [the same messages and another answer]}

Both examples of a pair begin with the tokens of the same prompt.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numpygpt.data.examples import Example, Kept, Limit
from numpygpt.data.instructions import messages_of, opening_of
from numpygpt.data.records import read_records, text_of
from numpygpt.data.templates import ASSISTANT, Message, Template
from numpygpt.data.tokenizer import Encoding
from numpygpt.errors import InputError


class Pair(NamedTuple):
    """The preferred answer and the other one, each with the prompt before it. Only the last answer counts."""

    chosen: Example
    rejected: Example


def read_preferences(path: Path, template: Template, tokenizer: Encoding, limit: Limit) -> Kept:
    """The pairs of a file of preference records.

    limit   how long an example may be; a pair is left out as a whole

    A pair whose answers are the same, perhaps because their ends were cut off, says nothing. It is left out and
    counted. Raises InputError for a file that cannot be read, and, with its place, for a record that lacks a
    prompt or one of its answers, whose two prompts differ, or that is too long.
    """
    pairs = []
    for place, record in read_records(path):
        examples = limit.fitted(pair_of(record, place, template, tokenizer), place)
        pairs += [Pair(*examples)] if examples is not None else []
    differing = [pair for pair in pairs if not np.array_equal(pair.chosen.token_ids, pair.rejected.token_ids)]
    return limit.kept(differing, path, alike=len(pairs) - len(differing))


def pair_of(record: dict[str, Any], place: str, template: Template, tokenizer: Encoding) -> Pair:
    """The pair of a record. InputError as `read_preferences`."""
    opening, chosen, rejected = _opening_and_answers(record, place, template)
    prompt = template.prompt(opening, tokenizer)

    def example(answer: Message) -> Example:
        whole = template.encode([*opening, answer], tokenizer)
        learned = whole.answer.copy()
        learned[: len(prompt)] = False  # earlier answers are a part of the prompt
        return Example(whole.token_ids, learned)

    return Pair(example(chosen), example(rejected))


def _opening_and_answers(
    record: dict[str, Any], place: str, template: Template
) -> tuple[list[Message], Message, Message]:
    (before, chosen), (others_before, rejected) = (_answer(record, field, place) for field in ("chosen", "rejected"))
    if before != others_before:
        raise InputError(f"{place}: the messages before the answers differ in chosen and rejected; expected the same")
    given = {"prompt", "instruction"} & record.keys()
    if before and given:
        raise InputError(f"{place} has messages before its answers, and {given.pop()} too; expected one of the two")
    return before or opening_of(record, place, template), chosen, rejected


def _answer(record: dict[str, Any], field: str, place: str) -> tuple[list[Message], Message]:
    """The messages before an answer, in that field, and the answer."""
    if not isinstance(record.get(field), list):
        return [], Message(ASSISTANT, text_of(record, field, place))
    *before, last = messages_of(record, field, place)
    if last.role != ASSISTANT:
        raise InputError(f"{place}: the last message of {field} is of the role {last.role!r}; expected {ASSISTANT!r}")
    return before, last
