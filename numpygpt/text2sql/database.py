"""Runs a query that nobody has checked in a real SQLite database, within limits.

What a model writes may be anything, so every answer comes with these limits:

    what it may do    it may read the tables of the schema and call FUNCTIONS. SQLite asks about each thing that a
                      statement would do before the statement runs, and everything else is refused: writing, ATTACH,
                      PRAGMA, other functions, recursion, SQLite's own tables. The database is also read-only and in
                      memory.
    time              MOST_STEPS instructions of SQLite's virtual machine, which take about a hundredth of a second.
                      Instructions are counted, so that the answer is the same on any machine. A machine that is very
                      slow is stopped after MOST_SECONDS of the thread's processor time, to which what other programs
                      do adds nothing.
    memory            a text and a row have MOST_BYTES at most, and each row that is kept costs instructions
    rows              MOST_ROWS
    the query itself  MOST_CHARACTERS, one statement that begins with SELECT, no deeper than DEEPEST, and without WITH:
                      a table that is made of two of the one before, a few times over, fills the memory while SQLite
                      still reads the statement

Nothing that a query does raises an error: an `Answer` has the rows, or says why there are none.
"""

import re
import sqlite3
import time
from types import TracebackType
from typing import Any, NamedTuple

from numpygpt.text2sql.schemas import Filling, Schema, Table

#: The functions that a query may call. The questions need no others.
FUNCTIONS = frozenset({"avg", "count", "max", "min", "sum"})

MOST_CHARACTERS = 1_000
MOST_ROWS = 200
MOST_BYTES = 4_000
MOST_STEPS = 100_000
MOST_SECONDS = 0.2
#: How many levels an expression may have, and how many SELECTs a UNION.
DEEPEST = 20
#: How many things a statement may ask SQLite's leave for. Tables within tables make their number grow exponentially.
MOST_REQUESTS = 500
#: After how many instructions SQLite looks at the clock, which counts the thread's processor time.
_STEPS_BETWEEN_LOOKS = 1_000

_SELECT = re.compile(r"\s*select\b", re.IGNORECASE)
_WITH = re.compile(r"\bwith\b", re.IGNORECASE)  # also within quotes: no word of a schema is this one

#: SQLite's own limits (https://www.sqlite.org/limits.html).
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: MOST_BYTES,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 4 * MOST_CHARACTERS,  # bytes: a character has four at most
    sqlite3.SQLITE_LIMIT_COLUMN: 50,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: DEEPEST,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: DEEPEST,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 5_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 4,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}


class Answer(NamedTuple):
    """What became of a query.

    rows    its rows, in the order in which SQLite gave them; None if it was refused or stopped
    error   why there are no rows, in one line; None if there are
    """

    rows: tuple[tuple[Any, ...], ...] | None
    error: str | None


class Database:
    """A database in memory with the tables of a schema and their rows.

    Use it in a `with`, or close it.
    """

    def __init__(self, schema: Schema, filling: Filling) -> None:
        self._tables = {table.name for table in schema.tables}
        self._requests = self._looks = 0
        self._deadline = 0.0
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        for table in schema.tables:
            self._connection.execute(_create(table))
            marks = ",".join("?" * len(table.columns))
            self._connection.executemany(f"INSERT INTO {table.name} VALUES ({marks})", filling[table.name])
        self._guard()

    def _guard(self) -> None:
        for pragma in ("query_only = ON", "trusted_schema = OFF", "temp_store = MEMORY"):
            self._connection.execute(f"PRAGMA {pragma}")
        for limit, most in _LIMITS.items():
            self._connection.setlimit(limit, most)
        self._connection.set_authorizer(self._permission)
        self._connection.set_progress_handler(self._is_over, _STEPS_BETWEEN_LOOKS)

    def close(self) -> None:
        """Give the memory back. No query can be answered after this."""
        self._connection.close()

    def __enter__(self) -> "Database":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(self, sql: str) -> Answer:
        """The rows of a query, or why there are none. Whatever the text is, no error is raised."""
        fault = _fault(sql)
        if fault:
            return Answer(None, fault)
        self._requests = self._looks = 0
        self._deadline = time.thread_time() + MOST_SECONDS
        try:
            rows = self._connection.execute(sql).fetchmany(MOST_ROWS + 1)
        except (sqlite3.Error, ValueError, MemoryError) as error:
            # ValueError: a character that UTF-8 cannot write, or a NUL
            return Answer(None, " ".join(str(error).split()) or type(error).__name__)
        if len(rows) > MOST_ROWS:
            return Answer(None, f"the answer has more than {MOST_ROWS} rows")
        return Answer(tuple(rows), None)

    def _permission(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """Whether a statement may do this. SQLite asks while it prepares the statement."""
        self._requests += 1
        if self._requests > MOST_REQUESTS or time.thread_time() > self._deadline:
            return sqlite3.SQLITE_DENY
        permitted = {
            sqlite3.SQLITE_SELECT: True,
            sqlite3.SQLITE_READ: (first or "").lower() in self._tables,
            sqlite3.SQLITE_FUNCTION: (second or "").lower() in FUNCTIONS,
        }
        return sqlite3.SQLITE_OK if permitted.get(action) else sqlite3.SQLITE_DENY

    def _is_over(self) -> bool:
        """Whether the query has had its time. SQLite asks every _STEPS_BETWEEN_LOOKS instructions."""
        self._looks += 1
        return self._looks * _STEPS_BETWEEN_LOOKS >= MOST_STEPS or time.thread_time() > self._deadline


def _fault(sql: str) -> str:
    """What is wrong with the text of a query; empty if nothing is."""
    if len(sql) > MOST_CHARACTERS:
        return f"the query has {len(sql)} characters; {MOST_CHARACTERS} are allowed"
    if not _SELECT.match(sql):
        return "the query does not begin with SELECT"
    return "the query has the word WITH, which is not allowed" if _WITH.search(sql) else ""


def _create(table: Table) -> str:
    return f"CREATE TABLE {table.name} ({', '.join(f'{column.name} {column.sql_type}' for column in table.columns)})"
