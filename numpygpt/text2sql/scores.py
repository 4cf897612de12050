"""How good a query is: exact match, and execution accuracy.

Exact match asks whether a query is the reference, except for white space, the case of letters outside of quotes, and
the `;` at its end.

Execution accuracy asks whether it gives the rows of the reference. A wrong query may give them by chance, so both run
on several random fillings of the schema, and have to agree on all of them (Zhong, Yu & Klein 2020, arXiv:2010.02840).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from zlib import crc32

from numpygpt.text2sql.database import Answer, Database
from numpygpt.text2sql.draws import Draws
from numpygpt.text2sql.questions import END, Example
from numpygpt.text2sql.schemas import draw_filling

#: On how many fillings a query has to agree with the reference.
FILLINGS = 5

#: To how many digits two floating-point numbers of an answer have to agree: SQLite may add in another order.
DIGITS = 12

_QUOTED = re.compile(r"('[^']*'?)")


def exact_match(sql: str, reference: str) -> bool:
    """Whether both are the same query, written the same way."""
    return _normalized(sql) == _normalized(reference)


def _normalized(sql: str) -> list[str]:
    """The parts of a query outside and inside of quotes, in turn."""
    parts = _QUOTED.split(sql.strip().removesuffix(END).rstrip())
    return [part if part.startswith("'") else _spaced(part.lower()) for part in parts]


def _spaced(text: str) -> str:
    """The text with one space between any two words or signs."""
    return " ".join(re.findall(r"\w+|[<>=!]+|\S", text))


class Verdict(NamedTuple):
    """What the fillings say of a query.

    runs    whether it gives rows on all of them, whatever rows
    right   whether they are those of the reference on all of them
    """

    runs: bool
    right: bool


class Judge:
    """Runs queries on the fillings of an example, and compares their rows with those of the reference."""

    def __init__(self, example: Example, databases: Sequence[Database]) -> None:
        self._ordered = example.ordered
        self._databases = databases
        self.references = [database.answer(example.sql) for database in databases]

    def verdict(self, sql: str) -> Verdict:
        """What the fillings say of the query. Whatever the text is, no error is raised."""
        answers = [database.answer(sql) for database in self._databases]
        runs = all(answer.rows is not None for answer in answers)
        right = all(
            same_rows(answer, reference, ordered=self._ordered)
            for answer, reference in zip(answers, self.references, strict=True)
        )
        return Verdict(runs, right)


@contextmanager
def judged(example: Example, fillings: int = FILLINGS) -> Iterator[Judge]:
    """Within the `with`, the judge of an example. An example has the same fillings each time.

    fillings   how many random fillings the judge compares on
    """
    draws = Draws(crc32(example.prompt.encode()))
    with ExitStack() as stack:
        databases = [
            stack.enter_context(
                Database(
                    example.schema,
                    draw_filling(draws, example.schema, example.constants, distinct=example.ordered),
                )
            )
            for _ in range(fillings)
        ]
        yield Judge(example, databases)


def same_rows(answer: Answer, reference: Answer, *, ordered: bool) -> bool:
    """Whether two answers have the same rows, each as often; in the same order, if `ordered`."""
    if answer.rows is None or reference.rows is None:
        return False
    ours, theirs = _rounded(answer.rows), _rounded(reference.rows)
    return ours == theirs if ordered else Counter(ours) == Counter(theirs)


def _rounded(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [
        tuple(float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value for value in row) for row in rows
    ]


class Scores(NamedTuple):
    """Shares of queries, from 0 to 1.

    exact       those that are the reference
    execution   those that give its rows
    runs        those that SQLite accepts
    """

    exact: float
    execution: float
    runs: float


def scores_of(examples: Sequence[Example], queries: Sequence[str]) -> Scores:
    """The scores of a query for each example. At least one example is expected."""
    verdicts = []
    for example, sql in zip(examples, queries, strict=True):
        with judged(example) as judge:
            verdicts.append(judge.verdict(sql))
    exact = [exact_match(sql, example.sql) for example, sql in zip(examples, queries, strict=True)]
    return Scores(_share(exact), _share([each.right for each in verdicts]), _share([each.runs for each in verdicts]))


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
