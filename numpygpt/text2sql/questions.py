"""Questions in English, the queries that answer them, and the text that a model reads.

The text is `schema|question>query;`:

    cars(name,color,price)|how many cars are there with price over 30?>SELECT COUNT(*) FROM cars WHERE price > 30;

What comes before the query, up to `>`, is the prompt. The query ends with `;`, which stands nowhere else.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple
from zlib import crc32

from numpygpt.text2sql.draws import Draws
from numpygpt.text2sql.schemas import (
    HIGHEST,
    KNOWN,
    LOWEST,
    NAME_COLUMN,
    UNKNOWN,
    Column,
    Schema,
    Value,
    Words,
    draw_schema,
    renamed,
)

END = ";"

#: One query in so many is held out of the training.
ONE_IN = 8

#: The parts of the test: their names, how many tables their schemas have, and of which words they are.
TEST_PARTS: dict[str, tuple[int, Words]] = {
    "one table": (1, KNOWN),
    "two tables": (2, KNOWN),
    "new names": (1, UNKNOWN),
}

#: How many of a hundred examples of the training have made-up names and words.
PERCENT_MADE_UP = 70
#: How many of a hundred examples of the training have two tables.
PERCENT_OF_TWO_TABLES = 35


class Example(NamedTuple):
    """A question and the query that answers it.

    sql         the query, without the `;` at its end
    constants   {column: what the query compares it with}
    """

    schema: Schema
    question: str
    sql: str
    constants: Mapping[str, Value]

    @property
    def prompt(self) -> str:
        """What the model reads before it writes the query."""
        return f"{self.schema}|{self.question}>"

    @property
    def text(self) -> str:
        """The prompt and the query with its end."""
        return f"{self.prompt}{self.sql}{END}"

    @property
    def ordered(self) -> bool:
        """Whether the order of the rows is a part of the answer."""
        return "ORDER BY" in self.sql


def held_out(example: Example) -> bool:
    """Whether the example belongs to the test.

    The schema and the query decide, so that a query of the test is in the training in no other wording either.
    """
    return crc32(f"{example.schema}|{example.sql}".encode()) % ONE_IN == 0


def training_examples(count: int, seed: int) -> list[Example]:
    """So many examples to train on. None is held out, and none has a word of UNKNOWN. Some may be there twice."""
    draws = Draws(seed)
    examples: list[Example] = []
    while len(examples) < count:
        example = draw_example(draws, KNOWN, 2 if draws.happens(PERCENT_OF_TWO_TABLES) else 1, PERCENT_MADE_UP)
        if not held_out(example):
            examples.append(example)
    return examples


def test_examples(part: str, count: int, seed: int) -> list[Example]:
    """So many different examples of a part of the test, one of TEST_PARTS; all of them are held out."""
    tables, words = TEST_PARTS[part]
    draws = Draws(seed)
    examples: dict[str, Example] = {}
    while len(examples) < count:
        example = draw_example(draws, words, tables)
        if held_out(example):
            examples[example.prompt] = example
    return list(examples.values())


def draw_example(draws: Draws, words: Words, tables: int, percent_made_up: int = 0) -> Example:
    """An example about a schema of one or two tables of these words, or, so often, of made-up ones."""
    schema = draw_schema(draws, words, tables)
    if draws.happens(percent_made_up):
        schema = renamed(draws, schema)
    return draws.one_of(FORMS[tables])(draws, schema)


# Which rows


class Scope(NamedTuple):
    """Which rows a question asks for.

    text        in words, after the name of the table
    sql         in SQL, after the name of the table
    constants   as an Example has them
    """

    text: str
    sql: str
    constants: Mapping[str, Value]


def _scope(draws: Draws, schema: Schema, *, most: int = 2, without: str = "") -> Scope:
    """All rows, or those that meet up to `most` conditions; of two tables, those whose group meets a condition.

    without   a column that is in no condition
    """
    if len(schema.tables) == 2:
        group = schema.tables[1]
        text, sql, constants = _condition(draws, draws.one_of(group.texts + group.numbers))
        belonging = draws.one_of(("of", "from"))
        return Scope(
            f" {belonging} {group.name} {text}",
            f" JOIN {group.name} USING ({schema.key}) WHERE {sql}",
            constants,
        )
    table = schema.tables[0]
    columns = [column for column in table.texts + table.numbers if column.name != without]
    conditions = [
        _condition(draws, column) for column in draws.some_of(columns, min(most, draws.one_of((0, 1, 1, 1, 2))))
    ]
    if not conditions:
        return Scope("", "", {})
    return Scope(
        " " + " and ".join(condition.text for condition in conditions),
        " WHERE " + " AND ".join(condition.sql for condition in conditions),
        {name: value for condition in conditions for name, value in condition.constants.items()},
    )


#: What compares a number, in SQL and in words.
COMPARISONS = {
    ">": ("over", "above", "more than"),
    "<": ("under", "below", "less than"),
    "=": ("exactly", "equal to"),
}


def _condition(draws: Draws, column: Column) -> Scope:
    """One condition on a column."""
    if column.words is None:
        value: Value = draws.number(LOWEST + 1, HIGHEST - 1)
        sign = draws.one_of(tuple(COMPARISONS))
        what, written = f"{draws.one_of(COMPARISONS[sign])} {value}", str(value)
    else:
        value = draws.one_of(column.words)
        negated = draws.happens(20)
        sign = "<>" if negated else "="
        what, written = f"not {value}" if negated else value, f"'{value}'"
    text = draws.one_of((f"with {column.name} {what}", f"whose {column.name} is {what}"))
    return Scope(text, f"{column.name} {sign} {written}", {column.name: value})


# What is asked of them


def _listed(draws: Draws, schema: Schema) -> Example:
    """One or two columns."""
    table, scope = schema.tables[0], _scope(draws, schema)
    others = [column.name for column in table.texts + table.numbers]
    columns = draws.some_of([NAME_COLUMN, *others], draws.one_of((1, 1, 2)))
    named = " and ".join(columns)
    question = draws.one_of((
        f"list the {named} of {table.name}{scope.text}",
        f"show the {named} of the {table.name}{scope.text}",
        f"{named} of {table.name}{scope.text}?",
    ))
    return Example(schema, question, f"SELECT {', '.join(columns)} FROM {table.name}{scope.sql}", scope.constants)


def _counted(draws: Draws, schema: Schema) -> Example:
    table, scope = schema.tables[0].name, _scope(draws, schema)
    question = draws.one_of((
        f"how many {table}{scope.text} are there?",
        f"how many {table} are there{scope.text}?",
        f"count the {table}{scope.text}",
        f"number of {table}{scope.text}?",
    ))
    return Example(schema, question, f"SELECT COUNT(*) FROM {table}{scope.sql}", scope.constants)


#: What is computed of a column, in SQL and in words.
AGGREGATES = {
    "AVG": ("average", "mean"),
    "MAX": ("highest", "largest", "maximum"),
    "MIN": ("lowest", "smallest", "minimum"),
    "SUM": ("total", "summed"),
}


def _aggregated(draws: Draws, schema: Schema) -> Example:
    table, scope = schema.tables[0], _scope(draws, schema)
    column, (function, word) = draws.one_of(table.numbers).name, _aggregate(draws)
    question = draws.one_of((
        f"what is the {word} {column} of {table.name}{scope.text}?",
        f"find the {word} {column} of the {table.name}{scope.text}",
        f"{word} {column} of all {table.name}{scope.text}?",
    ))
    return Example(schema, question, f"SELECT {function}({column}) FROM {table.name}{scope.sql}", scope.constants)


def _aggregate(draws: Draws) -> tuple[str, str]:
    function = draws.one_of(tuple(AGGREGATES))
    return function, draws.one_of(AGGREGATES[function])


#: The direction of a sort, in SQL and in words.
DIRECTIONS = {" DESC": ("highest", "largest"), "": ("lowest", "smallest")}


def _sorted(draws: Draws, schema: Schema) -> Example:
    """The names of all rows in an order."""
    table, scope = schema.tables[0], _scope(draws, schema, most=1)
    column, direction = draws.one_of(table.numbers).name, draws.one_of(tuple(DIRECTIONS))
    word = draws.one_of(DIRECTIONS[direction])
    question = draws.one_of((
        f"sort the {table.name}{scope.text} by {column}, {word} first",
        f"list {table.name}{scope.text} ordered by {column}, {word} first",
    ))
    sql = f"SELECT {NAME_COLUMN} FROM {table.name}{scope.sql} ORDER BY {column}{direction}"
    return Example(schema, question, sql, scope.constants)


def _best(draws: Draws, schema: Schema) -> Example:
    """The names of the first few in an order."""
    table, count = schema.tables[0], draws.number(2, 5)
    column, direction = draws.one_of(table.numbers).name, draws.one_of(tuple(DIRECTIONS))
    word = draws.one_of(DIRECTIONS[direction])
    question = draws.one_of((
        f"which {count} {table.name} have the {word} {column}?",
        f"show the {count} {table.name} with the {word} {column}",
        f"name the {count} {table.name} of {word} {column}",
    ))
    sql = f"SELECT {NAME_COLUMN} FROM {table.name} ORDER BY {column}{direction} LIMIT {count}"
    return Example(schema, question, sql, {})


def _distinct(draws: Draws, schema: Schema) -> Example:
    """Each value of a column once."""
    table = schema.tables[0]
    column = draws.one_of(table.texts).name
    scope = _scope(draws, schema, most=1, without=column)
    question = draws.one_of((
        f"list each {column} of {table.name}{scope.text} once",
        f"show the different {column} values of {table.name}{scope.text}",
    ))
    return Example(schema, question, f"SELECT DISTINCT {column} FROM {table.name}{scope.sql}", scope.constants)


def _grouped(draws: Draws, schema: Schema) -> Example:
    """A count or a value for each word of a column; of two tables, of a column of the group."""
    table = schema.tables[0]
    owner = schema.tables[-1]
    each = draws.one_of(owner.texts).name
    source = table.name if owner is table else f"{table.name} JOIN {owner.name} USING ({schema.key})"
    if draws.happens(50):
        computed = "COUNT(*)"
        question = draws.one_of((
            f"how many {table.name} are there for each {each}?",
            f"count the {table.name} by {each}",
        ))
    else:
        column, (function, word) = draws.one_of(table.numbers).name, _aggregate(draws)
        computed = f"{function}({column})"
        question = draws.one_of((
            f"{word} {column} of {table.name} for each {each}?",
            f"show the {word} {column} of {table.name} by {each}",
        ))
    return Example(schema, question, f"SELECT {each}, {computed} FROM {source} GROUP BY {each}", {})


#: The forms of questions about one table and about two.
FORMS: dict[int, tuple[Callable[[Draws, Schema], Example], ...]] = {
    1: (_listed, _counted, _aggregated, _sorted, _best, _distinct, _grouped),
    2: (_listed, _counted, _aggregated, _grouped),
}
