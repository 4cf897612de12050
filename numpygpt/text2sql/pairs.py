"""Preference pairs, for DPO: of two queries for one question, the better one executes correctly, the other does not."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from numpygpt.text2sql.questions import Example
from numpygpt.text2sql.scores import judged

#: From prompts and a number, so many texts for each prompt.
Sample: TypeAlias = Callable[[Sequence[str], int], list[list[str]]]


class Pair(NamedTuple):
    """Two queries for one prompt, without the `;` at their ends."""

    prompt: str
    chosen: str
    rejected: str


def pairs_of(examples: Sequence[Example], sample: Sample, samples: int) -> list[Pair]:
    """A pair of each example for which the model wrote something wrong.

    The better query is one that the model wrote, because DPO moves a model least from what it writes itself; where
    none of its queries is right, it is the reference. The other is the wrong one that the model wrote most often.

    sample    lets the model write
    samples   how many queries it writes for each example
    """
    texts = sample([example.prompt for example in examples], samples)
    pairs = [pair_of(example, queries) for example, queries in zip(examples, texts, strict=True)]
    return [pair for pair in pairs if pair is not None]


def pair_of(example: Example, queries: Sequence[str]) -> Pair | None:
    """The pair of one example, as above. None if none of the queries is wrong."""
    with judged(example) as judge:
        right = {sql: judge.verdict(sql).right for sql in queries}
    wrong = [sql for sql in queries if not right[sql]]
    if not wrong:
        return None
    chosen = next((sql for sql in queries if right[sql]), example.sql)
    return Pair(example.prompt, chosen, max(wrong, key=wrong.count))


#: Mistakes that people and models make: what is replaced, by what.
_MISTAKES = (
    (r">", "<"),
    (r" < ", " > "),
    (r"MAX\(", "MIN("),
    (r"AVG\(", "SUM("),
    (r"COUNT\(\*\)", "*"),
    (r" WHERE .*?(?= ORDER BY|$)", ""),
    (r" ORDER BY .*", ""),
    (r" LIMIT \d+", ""),
    (r" DESC", ""),
    (r"DISTINCT ", ""),
    (r" GROUP BY .*", ""),
    (r"FROM", "FORM"),
    (r"'$", ""),
)


def mistakes(sql: str) -> list[str]:
    """Versions of the query with one mistake each, by rule. Most give other rows; a few give the same ones."""
    changed = [re.sub(pattern, replacement, sql, count=1) for pattern, replacement in _MISTAKES]
    return [version for version in dict.fromkeys(changed) if version != sql]
