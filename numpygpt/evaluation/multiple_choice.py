"""Questions with several endings, of which one is right, as in HellaSwag (Zellers et al. 2019, arXiv:1905.07830).

Each line of a file is a JSON object of the data set: "ctx", the text before; "endings", the choices; "label", the
number of the right one, counted from 0. The model is not asked: it chooses the ending that it thinks likeliest.

    accuracy              of the endings with the smallest sum of -log p over their tokens
    normalized accuracy   of those with the smallest mean, which does not favor short endings

An ending's tokens are those of a space and the ending. This is how llm.c takes its HellaSwag scores.
EleutherAI's evaluation harness divides by characters, and cleans the texts first.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.data.records import json_object, lines_of, text_of
from numpygpt.data.tokenizer import Encoding
from numpygpt.errors import InputError
from numpygpt.evaluation.scores import CompletionScore, LogitsOf, completion, score_completions


class Question(NamedTuple):
    """A text, the endings to choose from, and the number of the right one."""

    context: str
    endings: tuple[str, ...]
    label: int


class ChoiceScore(NamedTuple):
    """Of all questions together."""

    accuracy: float
    normalized_accuracy: float
    questions: int


def read_questions(path: Path) -> list[Question]:
    """The questions of a file.

    Raises InputError for a file that cannot be read or has none, and for a record that lacks a field or has a label of
    no ending, with its line.
    """
    questions = [_question(json_object(line, place), place) for place, line in lines_of(path)]
    if not questions:
        raise InputError(f"{path} has no question; expected a JSON object in each line")
    return questions


def _question(record: dict[str, Any], place: str) -> Question:
    endings = record.get("endings")
    if not isinstance(endings, list) or len(endings) < 2 or not all(isinstance(e, str) and e for e in endings):
        raise InputError(f"{place}: the field endings is {endings!r:.60}; expected a list of at least two texts")
    label = record.get("label")
    number = int(label) if isinstance(label, str) and label.isdecimal() and len(label) < 10 else label
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(endings):
        raise InputError(f"{place}: the field label is {label!r:.60}; expected a number from 0 to {len(endings) - 1}")
    return Question(text_of(record, "ctx", place), tuple(endings), number)


def score_choices(
    logits_of: LogitsOf,
    questions: Sequence[Question],
    tokenizer: Encoding,
    *,
    context_length: int,
    batch_size: int = 1,
    advance: Callable[[int], Any] = lambda done: None,
) -> ChoiceScore:
    """The score over all questions; `advance` is told how many more endings are done."""
    completions = [
        completion(question.context, " " + ending, tokenizer)
        for question in questions
        for ending in question.endings
    ]
    found = iter(score_completions(logits_of, completions, context_length, batch_size, advance))
    right = normalized = 0
    for question in questions:
        of_endings = [next(found) for _ in question.endings]
        right += _likeliest(of_endings, lambda score: score.loss) == question.label
        normalized += _likeliest(of_endings, lambda score: score.loss / score.tokens) == question.label
    return ChoiceScore(right / len(questions), normalized / len(questions), len(questions))


def _likeliest(endings: Sequence[CompletionScore], cost: Callable[[CompletionScore], float]) -> int:
    """The number of the ending that costs least, the first of equals."""
    return min(range(len(endings)), key=lambda number: cost(endings[number]))
