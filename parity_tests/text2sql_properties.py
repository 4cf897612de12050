"""The properties that must hold for the worked application, in the manner of `properties`."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from unittest import mock

import numpy as np

from numpygpt.data.batching import padded
from numpygpt.shapes import IGNORE_INDEX
from numpygpt.text2sql import questions
from numpygpt.text2sql.database import Database
from numpygpt.text2sql.draws import Draws
from numpygpt.text2sql.earnings import rewards
from numpygpt.text2sql.pairs import mistakes, pair_of
from numpygpt.text2sql.questions import END, Example, draw_example, held_out, test_examples, training_examples
from numpygpt.text2sql.schemas import KNOWN, Column, Filling, Schema, Table, Words, draw_filling
from numpygpt.text2sql.scores import Judge, Verdict, judged
from numpygpt.text2sql.writing import batch_of, example_of, token_ids, tokenizer

test_examples.__test__ = False  # pytest takes it for a test

CARS = Table("cars", (Column("name", ("Ada", "Ben", "Eva")), Column("color", ("red", "blue")), Column("price", None)))
SCHEMA = Schema((CARS,))
FILLING: Filling = {"cars": [("Ada", "red", 10), ("Ben", "blue", 40), ("Eva", "red", 30)]}

ALL = "SELECT name FROM cars"
SORTED = f"{ALL} ORDER BY price"
NOBODY = f"{ALL} WHERE price > 99"
DEAR = f"{ALL} WHERE price > 20"

#: A reference, another query, and what is said of the other one.
JUDGED = (
    (ALL, SORTED, Verdict(runs=True, right=True)),
    (SORTED, ALL, Verdict(runs=True, right=False)),
    (SORTED, f"{SORTED} DESC", Verdict(runs=True, right=False)),
    (SORTED, f"{ALL} ORDER BY 2 * price", Verdict(runs=True, right=True)),
    (DEAR, f"{ALL} WHERE 20 < price", Verdict(runs=True, right=True)),
    (DEAR, f"{DEAR} AND price < 40", Verdict(runs=True, right=False)),
    (NOBODY, DEAR, Verdict(runs=True, right=False)),
    (NOBODY, "SELECT nme FROM cars", Verdict(runs=False, right=False)),
    (NOBODY, "DROP TABLE cars", Verdict(runs=False, right=False)),
)
#: Words of so few schemas that the same query is drawn again and again.
FEW = Words(("cars",), ("shops",), {"color": ("red", "blue"), "kind": ("old", "new")}, ("price", "age"))
#: Functions that no query needs.
FUNCTIONS = ("load_extension('evil')", "randomblob(9)", "zeroblob(9)", "printf('%9d', 1)", "group_concat(name)")
EXAMPLES = training_examples(12, seed=3)


def asked(sql: str) -> Example:
    """An example about the cars."""
    return Example(SCHEMA, "which cars?", sql, {})


@contextmanager
def judge_of(sql: str) -> Iterator[Judge]:
    """The judge of a query on FILLING alone."""
    with Database(SCHEMA, FILLING) as database:
        yield Judge(asked(sql), [database])


def executed(sql: str, filling: Filling = FILLING, schema: Schema = SCHEMA) -> list[tuple] | None:
    """The rows of a query by Python's own module, or None; the rows have no order unless the query gives one."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for table in schema.tables:
            connection.execute(f"CREATE TABLE {table.name} ({','.join(column.name for column in table.columns)})")
            connection.executemany(
                f"INSERT INTO {table.name} VALUES ({','.join('?' * len(table.columns))})", filling[table.name]
            )
        if not sql.startswith("SELECT"):
            return None
        try:
            return connection.execute(sql).fetchall()
        except sqlite3.Error:
            return None


def agrees(sql: str, example: Example) -> bool:
    """Whether a query gives the rows of the reference on some fillings, by Python's own module."""
    draws = Draws(7)
    for _ in range(6):
        filling = draw_filling(draws, example.schema, example.constants, distinct=True)
        ours, theirs = (executed(text, filling, example.schema) for text in (sql, example.sql))
        if ours is None or (ours != theirs if example.ordered else sorted(ours) != sorted(theirs)):
            return False
    return True


# What is learned


def queries_learned() -> None:
    """The targets of a batch are the queries with their ends, and nothing else."""
    _, targets = batch_of(EXAMPLES)
    for example, row in zip(EXAMPLES, targets, strict=True):
        assert tokenizer().decode(row[row != IGNORE_INDEX].tolist()) == example.sql + END


def batches_as_examples() -> None:
    """A batch of examples is that of prompts with answers, as all instruction tuning has it."""
    inputs, targets = batch_of(EXAMPLES)
    others = padded([example_of(example.prompt, example.sql) for example in EXAMPLES])
    for row, target, other, ids in zip(inputs, targets, others.targets, others.inputs, strict=True):
        counted = np.flatnonzero(target != IGNORE_INDEX)
        assert np.array_equal(counted, np.flatnonzero(other != IGNORE_INDEX))
        assert np.array_equal(target[counted], other[counted])
        assert np.array_equal(row[: counted[-1] + 1], ids[: counted[-1] + 1])


# What is never seen


def nothing_leaks() -> None:
    """No schema and query of the test is in the training, whatever the words of the question.

    All questions are about a few schemas here, so that the two would meet.
    """
    with mock.patch.multiple(questions, KNOWN=FEW, TEST_PARTS={"few": (1, FEW)}):
        known = {(str(example.schema), example.sql) for example in training_examples(1500, seed=4)}
        tested = test_examples("few", 60, seed=4)
    assert not known & {(str(example.schema), example.sql) for example in tested}


def wording_decides_nothing() -> None:
    """An example is held out or not, whatever the words of its question, and one in eight is."""
    draws = Draws(6)
    drawn = [draw_example(draws, KNOWN, 1) for _ in range(800)]
    assert all(held_out(example) == held_out(example._replace(question="in other words")) for example in drawn)
    assert 60 <= sum(map(held_out, drawn)) <= 140
    assert not any(map(held_out, training_examples(300, seed=6)))


# What a query is worth


def judged_by_hand() -> None:
    """What is said of these queries can be written down."""
    for reference, sql, verdict in JUDGED:
        with judge_of(reference) as judge:
            assert judge.verdict(sql) == verdict, (reference, sql)


def judged_by_sqlite() -> None:
    """It is what a comparison of rows says, by Python's own module."""
    for example in EXAMPLES:
        queries = [example.sql, *mistakes(example.sql), f"{ALL} FORM", "SELECT 1 WHERE 0"]
        with judged(example) as judge:
            for sql in queries:
                right = judge.verdict(sql).right
                assert right == agrees(sql, example), (example.sql, sql)
    for reference, sql, verdict in JUDGED:
        rows, others = executed(reference), executed(sql)
        ordered = "ORDER" in reference
        assert verdict.right == (others is not None and (rows == others if ordered else sorted(rows) == sorted(others)))
        with judge_of(reference) as judge:
            assert judge.verdict(sql).right == verdict.right


def earned_by_hand() -> None:
    """A right query earns 1, one that gives other rows 0.1, and one that gives none 0."""
    queries = [DEAR, f"{ALL} WHERE 20 < price", ALL, "SELECT nme FROM cars", "DROP TABLE cars", ""]
    assert rewards(asked(DEAR)._replace(constants={"price": 20}), queries).tolist() == [1, 1, 0.1, 0, 0, 0]


def earned_by_sqlite() -> None:
    """The earnings follow from whether Python's own module gives rows, and whether they are the reference's."""
    for example in EXAMPLES:
        queries = [example.sql, *mistakes(example.sql)]
        for sql, reward in zip(queries, rewards(example, queries), strict=True):
            filling = draw_filling(Draws(1), example.schema, example.constants, distinct=True)
            runs = executed(sql, filling, example.schema) is not None
            assert reward == (0 if not runs else 1 if agrees(sql, example) else 0.1), (example.sql, sql)


def preferred_by_hand() -> None:
    """The pair of these queries can be written down."""
    example, own = asked(DEAR)._replace(constants={"price": 20}), f"{ALL} WHERE 20 < price"
    assert pair_of(example, [ALL, "SELECT", own, ALL]) == (example.prompt, own, ALL)
    assert pair_of(example, ["SELECT"]) == (example.prompt, DEAR, "SELECT")
    assert pair_of(example, [own]) is None


def preferred_executes() -> None:
    """The preferred query of a pair gives the reference's rows, by Python's own module, and the other does not."""
    for example in EXAMPLES:
        pair = pair_of(example, mistakes(example.sql))
        assert agrees(pair.chosen, example)
        assert not agrees(pair.rejected, example)


# What a query may do


def functions_refused() -> None:
    """A query that calls another function than the questions need is refused."""
    with Database(SCHEMA, FILLING) as database:
        for function in FUNCTIONS:
            answer = database.answer(f"SELECT {function} FROM cars")
            assert answer.rows is None, function
            assert re.search("not authorized", answer.error)


def functions_asked_for() -> None:
    """SQLite is told to refuse what is on the list of all its functions, except for those that the questions need."""
    with closing(sqlite3.connect(":memory:")) as connection:
        names = {name for (name, *_) in connection.execute("PRAGMA function_list")}
    with Database(SCHEMA, FILLING) as database:
        permitted = set()
        for name in names:
            database.answer(ALL)  # it winds up the clock
            if database._permission(sqlite3.SQLITE_FUNCTION, None, name, None, None) == sqlite3.SQLITE_OK:
                permitted.add(name)
    assert permitted == {"avg", "count", "max", "min", "sum"}


PROPERTIES = {
    "queries_learned": queries_learned,
    "batches_as_examples": batches_as_examples,
    "nothing_leaks": nothing_leaks,
    "wording_decides_nothing": wording_decides_nothing,
    "judged_by_hand": judged_by_hand,
    "judged_by_sqlite": judged_by_sqlite,
    "earned_by_hand": earned_by_hand,
    "earned_by_sqlite": earned_by_sqlite,
    "preferred_by_hand": preferred_by_hand,
    "preferred_executes": preferred_executes,
    "functions_refused": functions_refused,
    "functions_asked_for": functions_asked_for,
}


def tell(watch) -> None:
    """Tell the watch what the worked application makes: examples, verdicts, earnings, pairs, refusals."""
    drawn = training_examples(60, seed=8)
    watch("text2sql.training", np.concatenate([token_ids(example.text) for example in drawn]))
    draws = Draws(8)
    watch("text2sql.held_out", np.array([held_out(draw_example(draws, KNOWN, 1)) for _ in range(60)], int))
    inputs, targets = batch_of(EXAMPLES)
    watch("text2sql.inputs", inputs)
    watch("text2sql.targets", targets)
    with Database(SCHEMA, FILLING) as database:
        answers = [database.answer(f"SELECT {function} FROM cars") for function in (*FUNCTIONS, "SUM(price)")]
    watch("text2sql.refused", np.array([answer.rows is None for answer in answers], int))
    for number, (reference, sql, _) in enumerate(JUDGED):
        with judge_of(reference) as judge:
            watch(f"text2sql.verdict.{number}", np.array(judge.verdict(sql), int))
    example = asked(DEAR)._replace(constants={"price": 20})
    watch("text2sql.earned", rewards(example, [DEAR, ALL, "SELECT"]))
    for name, text in pair_of(example, [ALL, DEAR])._asdict().items():
        watch(f"text2sql.pair.{name}", token_ids(text))
