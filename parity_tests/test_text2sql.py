"""The worked application: questions with their queries, what is held out, and the scores of a query."""

import re
import sqlite3
from collections import Counter

import numpy as np
import pytest

from numpygpt.text2sql.database import Answer, Database
from numpygpt.text2sql.draws import Draws
from numpygpt.text2sql.earnings import REFUSED, RIGHT, RUNS, reward_of, rewards
from numpygpt.text2sql.pairs import Pair, mistakes, pair_of, pairs_of
from numpygpt.text2sql.questions import (
    END,
    PERCENT_MADE_UP,
    TEST_PARTS,
    Example,
    held_out,
    test_examples,
    training_examples,
)
from numpygpt.text2sql.schemas import (
    KNOWN,
    MADE_UP_LETTERS,
    RESERVED,
    UNKNOWN,
    Column,
    Schema,
    Table,
    draw_filling,
    draw_schema,
    made_up,
    renamed,
)
from numpygpt.text2sql.scores import Scores, Verdict, exact_match, judged, same_rows, scores_of

test_examples.__test__ = False  # pytest takes it for a test

#: The checks of annotations would take ten times as long as the databases.
pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")

TRAINING = training_examples(1000, seed=1)
TEST = {part: test_examples(part, 100, seed=2) for part in TEST_PARTS}
EXAMPLES = [*TRAINING[:60], *(example for part in TEST.values() for example in part[:20])]

CARS = Table(
    "cars",
    (Column("name", ("Ada", "Ben", "Eva")), Column("color", ("red", "blue")), Column("price", None)),
)

KEYWORDS = (
    "abort action add after all alter always analyze and as asc attach autoincrement before begin between by "
    "cascade case cast check collate column commit conflict constraint create cross current current_date "
    "current_time current_timestamp database default deferrable deferred delete desc detach distinct do drop each "
    "else end escape except exclude exclusive exists explain fail filter first following for foreign from full "
    "generated glob group groups having if ignore immediate in index indexed initially inner insert instead "
    "intersect into is isnull join key last left like limit match materialized natural no not nothing notnull "
    "null nulls of offset on or order others outer over partition plan pragma preceding primary query raise range "
    "recursive references regexp reindex release rename replace restrict returning right rollback row rows "
    "savepoint select set table temp temporary then ties to transaction trigger unbounded union unique update "
    "using vacuum values view virtual when where window with without"
)


def cars(sql: str, **constants: int | str) -> Example:
    """An example about a table of cars."""
    return Example(Schema((CARS,)), "which cars?", sql, constants)


# Questions


def test_the_seed_alone_decides():
    assert training_examples(50, seed=1) == TRAINING[:50]
    assert training_examples(50, seed=3) != TRAINING[:50]
    assert test_examples("one table", 10, seed=2) == TEST["one table"][:10]


@pytest.mark.parametrize("part", TEST_PARTS)
def test_no_query_of_the_test_is_in_the_training(part):
    """Neither the question nor the query, in whatever wording, is there about the same schema."""
    asked = {(str(example.schema), example.question) for example in TRAINING}
    answered = {(str(example.schema), example.sql) for example in TRAINING}
    for example in TEST[part]:
        assert (str(example.schema), example.question) not in asked
        assert (str(example.schema), example.sql) not in answered


def test_the_split_depends_on_the_schema_and_the_query_alone():
    for example in EXAMPLES:
        assert held_out(example._replace(question="another wording", constants={})) == held_out(example)
    assert not any(map(held_out, TRAINING))
    assert all(held_out(example) for part in TEST.values() for example in part)


def test_the_examples_of_a_part_are_different_ones():
    assert all(len({example.prompt for example in part}) == len(part) for part in TEST.values())


def test_new_names_are_in_no_schema_of_the_training():
    def words(schemas) -> set[str]:
        return {word for schema in schemas for word in re.findall(r"\w+", str(schema))}

    shared = words(example.schema for example in TRAINING) & words(example.schema for example in TEST["new names"])
    assert shared == {"name"}
    assert not {*KNOWN.things, *KNOWN.groups, *KNOWN.texts, *KNOWN.numbers} & {
        *UNKNOWN.things, *UNKNOWN.groups, *UNKNOWN.texts, *UNKNOWN.numbers
    }


def test_a_part_of_the_training_has_made_up_names():
    known = {*KNOWN.things, *KNOWN.groups, *KNOWN.texts, *KNOWN.numbers, *(group[:-1] for group in KNOWN.groups)}
    made_up = [
        {*re.findall(r"\w+", str(example.schema))} - {"name"}
        for example in TRAINING
        if example.schema.tables[0].name not in known
    ]
    assert PERCENT_MADE_UP - 5 < len(made_up) / len(TRAINING) * 100 < PERCENT_MADE_UP + 5
    assert all(not words & known for words in made_up)
    assert len(set().union(*made_up)) > 3 * len(made_up)


@pytest.mark.parametrize("tables", [1, 2])
def test_a_renamed_schema_is_the_same_but_for_its_names(tables):
    for seed in range(30):
        draws = Draws(seed)
        schema = draw_schema(draws, KNOWN, tables)
        other = renamed(draws, schema)
        names = [column.name for table in other.tables for column in table.columns]
        assert len(set(names)) == len(names) - (tables - 1)  # the key is in both
        assert len({word for table in other.tables for column in table.columns for word in column.words or ()}) == len(
            {word for table in schema.tables for column in table.columns for word in column.words or ()}
        )
        for table, old in zip(other.tables, schema.tables, strict=True):
            assert [column.is_key for column in table.columns] == [column.is_key for column in old.columns]
            assert [column.sql_type for column in table.columns] == [column.sql_type for column in old.columns]


def can_be_a_name(word: str) -> bool:
    """Whether a table and a column may have this name in all queries."""
    table, column = f"{word}s", Column(word, None)
    try:
        with Database(Schema((Table(table, (column,)), Table(word, (column,)))), {table: [(7,)], word: [(7,)]}) as both:
            return all(
                both.answer(sql).rows
                for sql in (
                    f"SELECT {word} FROM {table} WHERE {word} > 3 AND {word} <> 5 ORDER BY {word} DESC LIMIT 3",
                    f"SELECT DISTINCT {word} FROM {table}",
                    f"SELECT {word}, COUNT(*) FROM {table} GROUP BY {word}",
                    f"SELECT MAX({word}) FROM {table} JOIN {word} USING ({word})",
                )
            )
    except sqlite3.Error:
        return False


def test_a_made_up_word_is_a_name_for_sqlite():
    """Of SQLite's keywords (https://www.sqlite.org/lang_keywords.html), those that cannot be names are RESERVED."""
    low, high = MADE_UP_LETTERS
    keywords = {word for word in KEYWORDS.split() if low <= len(word) <= high}
    assert {word for word in keywords if not can_be_a_name(word)} == RESERVED
    draws = Draws(4)
    words = [made_up(draws) for _ in range(2000)]
    assert {len(word) for word in words} == set(range(low, high + 1))
    assert not RESERVED & set(words)


def test_a_question_has_one_answer():
    queries: dict[str, set[str]] = {}
    for example in TRAINING:
        queries.setdefault(example.prompt, set()).add(example.sql)
    assert all(len(each) == 1 for each in queries.values())


def test_the_text_is_cut_where_the_query_begins_and_ends():
    for example in EXAMPLES:
        assert example.text == f"{example.schema}|{example.question}>{example.sql}{END}"
        assert example.text.isascii()
        assert example.prompt.count(">") == example.prompt.count("|") == example.text.count(END) == 1


@pytest.mark.parametrize(
    "piece",
    ["COUNT(*)", "AVG(", "MAX(", "MIN(", "SUM(", "DISTINCT ", " > ", " < ", " = ", " <> ", " AND ", " GROUP BY ",
     " ORDER BY ", " DESC", " LIMIT ", " JOIN ", ", "],
)
def test_every_kind_of_query_is_there(piece):
    assert sum(piece in example.sql for example in TRAINING) >= 10


def test_a_query_has_several_wordings():
    """Where names and values are left out, at least three questions are asked for most forms of queries."""
    wordings: dict[str, set[str]] = {}
    for example in TRAINING:
        names = re.escape(example.schema.tables[0].name)
        form = re.sub(r"\b[a-z]+\b|'\w+'|\d+", "_", example.sql)
        wordings.setdefault(form, set()).add(re.sub(names + r"|\d+", "_", example.question))
    counts = [len(each) for each in wordings.values()]
    assert np.median(counts) >= 3


def test_every_reference_runs_and_mostly_gives_rows():
    found = Counter()
    for example in EXAMPLES:
        with judged(example) as judge:
            assert judge.verdict(example.sql) == (True, True), example.text
            found[any(answer.rows for answer in judge.references)] += 1
    assert found[False] < 0.1 * len(EXAMPLES)


def test_draws_are_within_their_bounds_and_reach_them():
    draws = Draws(5)
    assert {draws.number(3, 6) for _ in range(100)} == {3, 4, 5, 6}
    assert {draws.one_of("ab") for _ in range(50)} == {"a", "b"}
    assert sorted(draws.some_of(range(5), 5)) == list(range(5))
    assert {draws.happens(50) for _ in range(50)} == {True, False}
    assert not any(draws.happens(0) for _ in range(50))


# Fillings


def test_a_filling_holds_the_constant_and_its_neighbors():
    filling = draw_filling(Draws(1), Schema((CARS,)), {"price": 30, "color": "red"}, distinct=True)["cars"]
    prices = [price for _, _, price in filling]
    assert {29, 30, 31} <= set(prices)
    assert len(set(prices)) == len(prices)
    assert "red" in {color for _, color, _ in filling}


def test_things_belong_to_groups_that_are_there():
    for seed in range(20):
        draws = Draws(seed)
        schema = draw_schema(draws, KNOWN, 2)
        filling = draw_filling(draws, schema, {}, distinct=False)
        things, groups = (filling[table.name] for table in schema.tables)
        assert {row[-1] for row in things} <= {row[0] for row in groups}
        assert len({row[0] for row in groups}) == len(groups)


# Scores


@pytest.mark.parametrize(
    ("sql", "same"),
    [
        ("SELECT name FROM cars WHERE color = 'red'", True),
        (" select  name from cars where color='red' ; ", True),
        ("SELECT name FROM cars WHERE color = 'Red'", False),
        ("SELECT name FROM cars WHERE color = 'r ed'", False),
        ("SELECT name FROM cars WHERE color <> 'red'", False),
        ("SELECT name FROM cars WHERE color = 'red", False),
        ("", False),
    ],
)
def test_exact_match(sql, same):
    assert exact_match(sql, "SELECT name FROM cars WHERE color = 'red'") is same


@pytest.mark.parametrize(
    ("reference", "sql", "right"),
    [
        ("SELECT name FROM cars", "SELECT name FROM cars ORDER BY price", True),
        ("SELECT name FROM cars ORDER BY price", "SELECT name FROM cars", False),
        ("SELECT name FROM cars ORDER BY price", "SELECT name FROM cars ORDER BY -price DESC", True),
        ("SELECT color FROM cars", "SELECT DISTINCT color FROM cars", False),
        ("SELECT DISTINCT color FROM cars", "SELECT color FROM cars GROUP BY color", True),
        ("SELECT AVG(price) FROM cars", "SELECT SUM(price) * 1.0 / COUNT(*) FROM cars", True),
        ("SELECT AVG(price) FROM cars", "SELECT SUM(price) / COUNT(*) FROM cars", False),
        ("SELECT COUNT(*) FROM cars", "SELECT COUNT(*) FROM car", False),
        ("SELECT name, price FROM cars", "SELECT price, name FROM cars", False),
    ],
)
def test_execution_accuracy(reference, sql, right):
    with judged(cars(reference)) as judge:
        assert judge.verdict(sql).right is right


@pytest.mark.parametrize(
    ("sql", "wrong"),
    [("price > 30", "price >= 30"), ("price > 30", "price > 31"), ("price < 30", "price < 29"),
     ("price = 30", "price = 31")],
)
def test_a_query_that_agrees_on_one_filling_by_chance_is_wrong(sql, wrong):
    """It agrees where no row is near the constant. The fillings of a judge have such rows."""
    example, cheat = cars(f"SELECT name FROM cars WHERE {sql}"), f"SELECT name FROM cars WHERE {wrong}"
    agreed = []
    for seed in range(40):
        filling = draw_filling(Draws(seed), example.schema, {}, distinct=False)
        with Database(example.schema, filling) as database:
            agreed.append(same_rows(database.answer(cheat), database.answer(example.sql), ordered=False))
    assert any(agreed)
    with judged(example._replace(constants={"price": 30})) as judge:
        assert not judge.verdict(cheat).right


def test_one_filling_is_fooled_where_several_are_not():
    """The largest price is sometimes that of the first row: one filling cannot tell, five can."""
    example, cheat = cars("SELECT MAX(price) FROM cars"), "SELECT price FROM cars LIMIT 1"
    questions = [example._replace(question=f"number {number}") for number in range(30)]

    def fooled(fillings: int) -> int:
        count = 0
        for question in questions:
            with judged(question, fillings) as judge:
                count += judge.verdict(cheat).right
        return count

    assert fooled(1) > fooled(5) == 0


def test_rows_are_compared_as_a_bag_unless_they_are_ordered():
    one, other, fewer = (Answer(rows, None) for rows in (((1,), (2,), (2,)), ((2,), (1,), (2,)), ((1,), (2,))))
    assert same_rows(one, other, ordered=False)
    assert not same_rows(one, other, ordered=True)
    assert not same_rows(one, fewer, ordered=False)
    assert not same_rows(Answer(None, "no such table"), Answer(None, "no such table"), ordered=False)


def test_floats_are_equal_except_for_their_last_digits():
    third = Answer(((0.1 + 0.2, "a"),), None)
    assert same_rows(third, Answer(((0.3, "a"),), None), ordered=True)
    assert not same_rows(third, Answer(((0.3001, "a"),), None), ordered=True)
    assert same_rows(Answer(((2.0,),), None), Answer(((2,),), None), ordered=False)
    assert not same_rows(Answer((("2",),), None), Answer(((2,),), None), ordered=False)
    assert same_rows(Answer(((float("inf"), None),), None), Answer(((float("inf"), None),), None), ordered=False)


def test_the_scores_are_shares():
    example = cars("SELECT name FROM cars WHERE color = 'red'", color="red")
    queries = [example.sql, "SELECT name FROM cars WHERE 'red' = color", "SELECT name FROM cars", "SELECT"]
    assert scores_of([example] * 4, queries) == Scores(exact=0.25, execution=0.5, runs=0.75)


# Rewards and pairs


def test_the_reward_of_a_query_is_its_execution():
    example = cars("SELECT name FROM cars WHERE price > 30", price=30)
    queries = [example.sql, "SELECT name FROM cars WHERE 30 < price", "SELECT name FROM cars", "SELECT nme FROM cars",
               "", "DROP TABLE cars", "\0", "\ud800", "SELECT " + "1" * 5000]
    earned = rewards(example, queries)
    assert earned.dtype == np.float64
    assert earned.tolist() == [RIGHT, RIGHT, RUNS, *[REFUSED] * 6]


def test_a_reward_is_never_nan():
    for runs in (True, False):
        for right in (True, False):
            assert np.isfinite(reward_of(Verdict(runs, right)))
    assert RIGHT > RUNS > REFUSED


def test_the_better_query_of_a_pair_executes_correctly_and_the_other_does_not():
    examples = TEST["one table"][:30]
    asked = []

    def sample(prompts, count):
        asked.append((list(prompts), count))
        return [(mistakes(example.sql) * count)[:count] for example in examples]

    pairs = pairs_of(examples, sample, 6)
    assert asked == [([example.prompt for example in examples], 6)]
    assert len(pairs) > 0.9 * len(examples)
    by_prompt = {example.prompt: example for example in examples}
    for pair in pairs:
        with judged(by_prompt[pair.prompt]) as judge:
            assert judge.verdict(pair.chosen).right
            assert not judge.verdict(pair.rejected).right


def test_a_pair_prefers_what_the_model_wrote():
    example = cars("SELECT name FROM cars WHERE price > 30", price=30)
    own, wrong = "SELECT name FROM cars WHERE 30 < price", "SELECT name FROM cars"
    assert pair_of(example, ["SELECT", wrong, own, wrong]) == Pair(example.prompt, own, wrong)
    assert pair_of(example, [wrong, wrong]) == Pair(example.prompt, example.sql, wrong)
    assert pair_of(example, [own, example.sql]) is None


def test_rule_made_mistakes_differ_from_the_query_and_each_other():
    sql = "SELECT MAX(price) FROM cars WHERE color = 'red' AND price > 3"
    versions = mistakes(sql)
    assert len(set(versions)) == len(versions) >= 4
    assert sql not in versions

