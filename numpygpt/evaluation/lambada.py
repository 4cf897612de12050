"""LAMBADA (Paperno et al. 2016, arXiv:1606.06031): the last word of a passage, which needs the whole of it.

A file of the data set has a passage in each line: as plain text, or as a JSON object with the field "text". The last
word is what follows the last space. Its tokens are those of the space and the word together, after the tokens of
everything before.

    accuracy     the share of passages in which each token of the last word is the likeliest one
    perplexity   exp of the mean over the passages of -log p(last word)

This is the protocol of EleutherAI's evaluation harness ("lambada_openai"). No word is excluded from the answers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.data.records import json_object, lines_of, text_of
from numpygpt.data.tokenizer import Encoding
from numpygpt.errors import InputError
from numpygpt.evaluation.perplexity import perplexity
from numpygpt.evaluation.scores import LogitsOf, completion, score_completions


class Passage(NamedTuple):
    """A passage without its last word; and a space and that word."""

    context: str
    last_word: str


class LambadaScore(NamedTuple):
    """Of all passages together."""

    accuracy: float
    perplexity: float
    passages: int


def read_passages(path: Path) -> list[Passage]:
    """The passages of a file.

    Raises InputError for a file that cannot be read or has none, and for a passage of a single word, with its line.
    """
    lines = list(lines_of(path))
    if not lines:
        raise InputError(f"{path} has no passage; expected one in each line")
    of_json = lines[0].text.lstrip().startswith("{")
    passages = []
    for place, line in lines:
        text = text_of(json_object(line, place), "text", place) if of_json else line
        context, space, word = text.strip().rpartition(" ")
        if not context:
            raise InputError(f"{place} is {text!r:.60}; expected a passage of at least two words")
        passages.append(Passage(context, space + word))
    return passages


def score_lambada(
    logits_of: LogitsOf,
    passages: Sequence[Passage],
    tokenizer: Encoding,
    *,
    context_length: int,
    batch_size: int = 1,
    advance: Callable[[int], Any] = lambda done: None,
) -> LambadaScore:
    """The score over all passages; `advance` is told how many more are done."""
    completions = [completion(passage.context, passage.last_word, tokenizer) for passage in passages]
    found = score_completions(logits_of, completions, context_length, batch_size, advance)
    mean_loss = sum(score.loss for score in found) / len(found)
    return LambadaScore(sum(score.greedy for score in found) / len(found), perplexity(mean_loss), len(found))
