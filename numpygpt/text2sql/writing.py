"""How a model reads examples, and writes queries.

A model reads the text of an example (`numpygpt.text2sql.questions`) byte by byte. It learns to predict the query and
its end; what is before the query are targets that do not count.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from numpygpt.data import examples as learned
from numpygpt.data.tokenizer import PLUS, Encoding, get_tokenizer, text_to_token_ids, token_ids_to_text
from numpygpt.decoding.generation import generate
from numpygpt.model.gpt import GPTModel
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array, Integer
from numpygpt.text2sql.draws import Draws
from numpygpt.text2sql.questions import END, Example

#: What is one token each in place of its bytes: what all questions and queries are made of, except for names, words and
#: numbers. None is the beginning of another, and none can be a part of a name, so a text has one reading.
PHRASES = (
    "|how many", "|count the", "|number of", "|list the", "|list each", "|show the", "|what is the", "|find the",
    "|sort the", "|which ", "|name the", "(name,", " of ", " from ", " with ", " whose ", " is ", " and ", " by ",
    " for each ", " are there", " have the", " values of ", " ordered by ", " average ", " mean ", " highest ",
    " largest ", " maximum ", " lowest ", " smallest ", " minimum ", " total ", " summed ", " different ", " over ",
    " above ", " more than ", " under ", " below ", " less than ", " exactly ", " equal to ", " not ",
    "SELECT ", "COUNT(*)", "DISTINCT ", "AVG(", "MAX(", "MIN(", "SUM(", " FROM ", " JOIN ", " USING (", " WHERE ",
    " AND ", " GROUP BY ", " ORDER BY ", " DESC", " LIMIT ", " = ", " <> ", " > ", " < ",
)  # fmt: skip

TOKENIZER = PLUS.join(["bytes", *PHRASES])

#: The longest query that a model may write, in tokens. The references have 52 at most.
LONGEST_QUERY = 64

#: How many prompts a model reads at a time, and how many batches are sorted by length together.
AT_A_TIME = 100
SORTED_TOGETHER = 16


@cache
def tokenizer() -> Encoding:
    """The tokenizer."""
    return get_tokenizer(TOKENIZER)


def token_ids(text: str) -> Integer[Array, "T"]:
    """The tokens of the text, int64."""
    return text_to_token_ids(text, tokenizer())[0]


def batch_of(examples: Sequence[Example]) -> tuple[Integer[Array, "B T"], Integer[Array, "B T"]]:
    """Inputs and targets, (B, T) each; T is one less than the bytes of the longest text.

    The targets of the prompt and of the padding on the right are IGNORE_INDEX.
    """
    rows = [token_ids(example.text) for example in examples]
    longest = max(map(len, rows)) - 1
    inputs = np.zeros((len(rows), longest), dtype=np.int64)
    targets = np.full((len(rows), longest), IGNORE_INDEX)
    for place, (example, row) in enumerate(zip(examples, rows, strict=True)):
        query = len(token_ids(example.prompt))
        inputs[place, : len(row) - 1] = row[:-1]
        targets[place, query - 1 : len(row) - 1] = row[query:]
    return inputs, targets


def batches_of(examples: Sequence[Example], size: int, draws: Draws) -> Iterator[list[Example]]:
    """The examples in batches of this size, except for the last, in random order.

    The batches of a group are sorted by length before they are cut, so that little of a batch is padding.
    """
    group = SORTED_TOGETHER * size
    for start in range(0, len(examples), group):
        some = sorted(examples[start : start + group], key=lambda example: len(example.text))
        batches = [some[first : first + size] for first in range(0, len(some), size)]
        yield from draws.some_of(batches, len(batches))


def write(
    model: GPTModel, prompts: Sequence[str], *, temperature: float = 0.0, rng: TorchGenerator | None = None
) -> list[str]:
    """A query for each prompt, without the `;` at its end; what the model has written so far, if it wrote no end.

    temperature, rng   as `generate` takes them; by default the likeliest byte is taken each time
    """
    queries = []
    for start in range(0, len(prompts), AT_A_TIME):
        some = [token_ids(prompt) for prompt in prompts[start : start + AT_A_TIME]]
        texts = generate(
            model, some, LONGEST_QUERY, model.config.context_length, temperature, eos_id=ord(END), rng=rng
        )
        new = [text[len(prompt) :] for text, prompt in zip(texts, some, strict=True)]
        # prompts of one length come back as one array, filled with the end
        queries += [query_of(each) for each in new]
    return queries


def query_of(new: Integer[Array, "S"]) -> str:
    """The query in the bytes that a model has written, without the `;` at its end."""
    return token_ids_to_text(new, tokenizer()).partition(END)[0]


def example_of(prompt: str, sql: str) -> learned.Example:
    """A prompt and a query with its end, of which the query is learned."""
    ids = token_ids(f"{prompt}{sql}{END}")
    return learned.Example(ids, np.arange(len(ids)) >= len(token_ids(prompt)))


class Sampler:
    """A model that writes several queries for each prompt, as `numpygpt.text2sql.pairs.pairs_of` asks for."""

    def __init__(self, model: GPTModel, temperature: float, rng: TorchGenerator) -> None:
        self._model, self._temperature, self._rng = model, temperature, rng

    def __call__(self, prompts: Sequence[str], count: int) -> list[list[str]]:
        """So many queries for each prompt."""
        repeated = [prompt for prompt in prompts for _ in range(count)]
        queries = write(self._model, repeated, temperature=self._temperature, rng=self._rng)
        return [queries[start : start + count] for start in range(0, len(queries), count)]
