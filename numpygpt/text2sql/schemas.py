"""Small schemas: tables, columns, and rows to fill them with.

A schema is one table of things, such as `cars(name,color,price)`, or two tables, of which the first belongs to the
second: `cars(name,price,shop),shops(shop,city,age)`. No two columns of a schema have one name, except for the key
that joins the tables, so a query never needs to say whose column it means.
"""

from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import NamedTuple, TypeAlias

from numpygpt.text2sql.draws import Draws

Value: TypeAlias = int | str
Row: TypeAlias = tuple[Value, ...]
#: The rows of each table, by its name.
Filling: TypeAlias = dict[str, list[Row]]

#: The values of numbers, both included.
LOWEST, HIGHEST = 1, 99
#: How many rows a table gets, both included. They are more than a column of words has words, so that some words are
#: there twice: it then shows whether a query has DISTINCT.
FEWEST_ROWS, MOST_ROWS = 7, 12

NAME_COLUMN = "name"
NAMES = ("Ada", "Ben", "Eva", "Ida", "Leo", "Max", "Mia", "Noa", "Tom", "Uma")


class Words(NamedTuple):
    """Of what schemas are made.

    things    tables, in the plural; a table of things has a name for each
    groups    tables to which things can belong
    texts     {column of words: its words}
    numbers   columns of numbers
    """

    things: tuple[str, ...]
    groups: tuple[str, ...]
    texts: Mapping[str, tuple[str, ...]]
    numbers: tuple[str, ...]


#: The words of all schemas that a model is trained on. They are short, because each of their bytes costs a step time.
KNOWN = Words(
    things=("bags", "birds", "boats", "books", "cars", "cats", "cups", "dogs", "films", "games", "hats", "pens",
            "rings", "songs", "toys", "trees"),
    groups=("farms", "shops", "teams", "towns"),
    texts={
        "city": ("Rome", "Paris", "Oslo", "Cairo", "Lima", "Delhi"),
        "color": ("red", "blue", "green", "black", "white"),
        "land": ("Italy", "Peru", "India", "Japan", "Kenya"),
        "kind": ("old", "new", "rare", "plain"),
        "month": ("May", "June", "July", "March"),
        "mood": ("calm", "wild", "shy", "glad"),
    },
    numbers=("age", "cost", "price", "rank", "score", "size", "speed", "stock"),
)

#: Words that no schema for training has. A model that answers questions about them has learned to copy.
UNKNOWN = Words(
    things=("clocks", "horses", "lamps", "tools"),
    groups=("banks", "schools"),
    texts={"taste": ("sweet", "sour", "salty", "bitter"), "shape": ("round", "flat", "long", "thin")},
    numbers=("depth", "power", "width"),
)


#: How many letters a made-up word has, both included.
MADE_UP_LETTERS = 3, 6
#: The words of so many letters that SQLite takes for no name, and WITH, which no query may have.
RESERVED = frozenset({
    "add", "all", "alter", "and", "case", "cast", "check", "commit", "create", "delete", "drop", "else", "escape",
    "except", "exists", "from", "group", "having", "index", "insert", "into", "isnull", "join", "limit", "not",
    "null", "order", "raise", "select", "set", "table", "then", "union", "unique", "update", "using", "values",
    "when", "where", "with",
})  # fmt: skip


class Column(NamedTuple):
    """A column of a table.

    words    the words that it may hold; None: it holds numbers
    is_key   whether it joins two tables
    """

    name: str
    words: tuple[str, ...] | None
    is_key: bool = False

    @property
    def sql_type(self) -> str:
        """Its type in SQLite."""
        return "INTEGER" if self.words is None else "TEXT"


class Table(NamedTuple):
    """A table and its columns, in the order in which a row has them."""

    name: str
    columns: tuple[Column, ...]

    def __str__(self) -> str:
        return f"{self.name}({','.join(column.name for column in self.columns)})"

    @property
    def texts(self) -> list[Column]:
        """The columns of words, except for the name."""
        return [column for column in self.columns if column.words and column.name != NAME_COLUMN]

    @property
    def numbers(self) -> list[Column]:
        """The columns of numbers, except for the key."""
        return [column for column in self.columns if column.words is None and not column.is_key]


class Schema(NamedTuple):
    """One table, or a table of things and the table to which they belong."""

    tables: tuple[Table, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.tables))

    @property
    def key(self) -> str:
        """The column that joins the two tables."""
        return self.tables[1].columns[0].name


def draw_schema(draws: Draws, words: Words, tables: int) -> Schema:
    """A schema of one or two tables of these words.

    A table alone has a name, a column of words, one of numbers, and sometimes another of either kind. Of two, the
    things have a name and numbers, and the groups have words and numbers.
    """
    thing = draws.one_of(words.things)
    name = Column(NAME_COLUMN, NAMES)
    if tables == 1:
        texts, numbers = draws.one_of(((1, 1), (1, 1), (2, 1), (1, 2)))
        columns = [*draws.some_of(_texts(words), texts), *draws.some_of(_numbers(words), numbers)]
        return Schema((Table(thing, (name, *draws.some_of(columns, len(columns)))),))
    group = draws.one_of(words.groups)
    key = Column(group[:-1], None, is_key=True)
    of_thing, of_group = draws.some_of(_numbers(words), 2)
    of_groups = draws.some_of([draws.one_of(_texts(words)), of_group], 2)
    return Schema((Table(thing, (name, of_thing, key)), Table(group, (key, *of_groups))))


def renamed(draws: Draws, schema: Schema) -> Schema:
    """The schema with made-up names and words, except for the name column.

    A model that sees other words each time cannot learn them by heart, and has to copy them.
    """
    new = {NAME_COLUMN: NAME_COLUMN}

    def of(word: str) -> str:
        while word not in new:
            made = made_up(draws)
            if made not in new.values():
                new[word] = made
        return new[word]

    def column_of(column: Column) -> Column:
        words = column.words
        return column._replace(
            name=of(column.name), words=words if words in (None, NAMES) else tuple(map(of, words))
        )

    return Schema(
        tuple(Table(of(table.name[:-1]) + "s", tuple(map(column_of, table.columns))) for table in schema.tables)
    )


def made_up(draws: Draws) -> str:
    """A word of random letters, which SQLite takes for a name."""
    while True:
        word = "".join(draws.one_of(ascii_lowercase) for _ in range(draws.number(*MADE_UP_LETTERS)))
        if word not in RESERVED:
            return word


def _texts(words: Words) -> list[Column]:
    return [Column(name, values) for name, values in words.texts.items()]


def _numbers(words: Words) -> list[Column]:
    return [Column(name, None) for name in words.numbers]


def draw_filling(draws: Draws, schema: Schema, constants: Mapping[str, Value], *, distinct: bool) -> Filling:
    """Rows for each table of the schema.

    A query that differs from the right one only at the edge (`>` for `>=`) must give other rows, so the rows hold what
    the right query compares with (Zhong, Yu & Klein 2020, arXiv:2010.02840, section 3).

    constants   {column: what the right query compares it with}
    distinct    whether all numbers of a column differ, as they have to where they are sorted: the order of equal ones
                is nowhere defined
    """
    filling: Filling = {}
    ids: list[int] = []
    for table in reversed(schema.tables):  # the groups come first, because the things refer to them
        count = draws.number(FEWEST_ROWS, MOST_ROWS)
        columns = []
        for column in table.columns:
            if not column.is_key:
                columns.append(_values(draws, column, count, constants.get(column.name), distinct=distinct))
            elif ids:
                columns.append([draws.one_of(ids) for _ in range(count)])
            else:
                ids = list(range(1, count + 1))
                columns.append(ids)
        filling[table.name] = list(zip(*columns, strict=True))
    return filling


def _values(draws: Draws, column: Column, count: int, constant: Value | None, *, distinct: bool) -> Sequence[Value]:
    """So many values of the column, among them the constant and, for a number, those beside it."""
    if isinstance(constant, int):
        first: list[Value] = [constant, constant - 1, constant + 1]
    else:
        first = [] if constant is None else [constant]
    others: Sequence[Value] = column.words or [n for n in range(LOWEST, HIGHEST + 1) if n not in first]
    more = count - len(first)
    if distinct and not column.words:
        drawn = draws.some_of(others, more)
    else:
        drawn = [draws.one_of(others) for _ in range(more)]
    return draws.some_of([*first, *drawn], count)
