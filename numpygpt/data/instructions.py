"""Instruction records: a request and the answer that a model learns to give. Each record has one of three forms.

    {"instruction": ..., "input": ..., "output": ...}                 Alpaca's; the input may be empty or missing
    {"prompt": ..., "completion": ...}
    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}

A template (`numpygpt.data.templates`) makes one text of each. The answers in it are learned, the rest is masked.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.data.examples import Example, Kept, Limit
from numpygpt.data.records import read_records, text_of
from numpygpt.data.templates import ASSISTANT, ROLES, SYSTEM, USER, Message, Template
from numpygpt.data.tokenizer import Encoding
from numpygpt.errors import InputError
from numpygpt.shapes import Array, Integer


class Prompt(NamedTuple):
    """What an answer is asked for, and the whole record, by which the answer can be judged."""

    token_ids: Integer[Array, "T"]
    record: Mapping[str, Any]


def read_instructions(
    path: Path, template: Template, tokenizer: Encoding, limit: Limit, *, mask_prompts: bool = True
) -> Kept:
    """The examples of a file of instruction records.

    limit          how long an example may be; what it left out and cut off is counted in the result
    mask_prompts   as `Template.encode` takes it

    Raises InputError for a file that cannot be read, and, with its place, for a record of none of the forms, one
    without an answer, or one that is too long.
    """
    examples: list[Example] = []
    for place, record in read_records(path):
        messages = conversation_of(record, place, template)
        example = template.encode(messages, tokenizer, mask_prompts=mask_prompts)
        examples += limit.fitted([example], place) or []
    return limit.kept(examples, path)


def read_prompts(path: Path, template: Template, tokenizer: Encoding, limit: Limit) -> Kept:
    """The prompts of a file of instruction records, each up to where its last answer begins.

    limit   how many tokens a prompt may have: what the context has beyond the longest answer

    Raises InputError as `read_instructions`; a record needs no answer.
    """
    prompts = []
    for place, record in read_records(path):
        token_ids = template.prompt(opening_of(record, place, template), tokenizer)
        fitted = limit.fitted([Example.without_answer(token_ids)], place)
        prompts += [Prompt(example.token_ids, record) for example in fitted or []]
    return limit.kept(prompts, path)


def conversation_of(record: dict[str, Any], place: str, template: Template) -> list[Message]:
    """The messages of a record, of which the last is an answer. InputError, which says where, for any other record."""
    if "messages" not in record:
        field = "output" if "instruction" in record else "completion"
        return [*opening_of(record, place, template), Message(ASSISTANT, text_of(record, field, place))]
    messages = messages_of(record, "messages", place)
    if messages[-1].role != ASSISTANT:
        raise InputError(
            f"{place}: the last of its messages is of the role {messages[-1].role!r}; expected {ASSISTANT!r}, an answer"
        )
    return messages


def opening_of(record: dict[str, Any], place: str, template: Template) -> list[Message]:
    """The messages of a record before its last answer. InputError, which says where, if there are none."""
    if "messages" in record:
        messages = messages_of(record, "messages", place)
        opening = messages[:-1] if messages[-1].role == ASSISTANT else messages
        if not opening:
            raise InputError(f"{place}: its only message is an answer; expected a message of the role {USER!r} before")
        return opening
    if isinstance(record.get("prompt"), list):
        return messages_of(record, "prompt", place)
    if "prompt" in record:
        return [Message(USER, text_of(record, "prompt", place))]
    if "instruction" not in record:
        raise InputError(
            f"{place} has the fields {', '.join(record) or 'none'}; expected instruction, prompt or messages among them"
        )
    instruction = text_of(record, "instruction", place)
    more = text_of(record, "input", place, may_be_empty=True)
    return [Message(USER, f"{instruction}{template.input}{more}" if more else instruction)]


def messages_of(record: dict[str, Any], field: str, place: str) -> list[Message]:
    """The messages in a field.

    Raises InputError, which says where, unless it is a list of at least one {"role": ..., "content": ...}, each of a
    known role and with a text, and a message of the system comes first, if there is one.
    """
    listed = record[field]
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{place}: the field {field} is {listed!r:.60}; expected a list of messages")
    messages = [_message(message, f"{place}, message {number} of {field}") for number, message in enumerate(listed, 1)]
    _refuse_late_system(messages, place)
    return messages


def _message(message: Any, place: str) -> Message:
    if not isinstance(message, dict):
        raise InputError(f"{place} is {message!r:.60}; expected an object with role and content")
    role = text_of(message, "role", place)
    if role not in ROLES:
        raise InputError(f"{place}: the field role is {role!r:.60}; expected one of: {', '.join(ROLES)}")
    return Message(role, text_of(message, "content", place))


def _refuse_late_system(messages: Sequence[Message], place: str) -> None:
    late = [number for number, message in enumerate(messages, 1) if message.role == SYSTEM and number > 1]
    if late:
        raise InputError(f"{place}: message {late[0]} is of the role {SYSTEM!r}; expected it as the first message only")
