"""Whatever a query says, SQLite answers within the limits on time, rows and memory, and stays as it was."""

import sqlite3
import subprocess
import sys
import time

import pytest

from numpygpt.text2sql import database as module
from numpygpt.text2sql.database import Database
from numpygpt.text2sql.schemas import NAMES, Column, Schema, Table

CARS = Table("cars", (Column("name", NAMES), Column("price", None), Column("shop", None, is_key=True)))
SHOPS = Table("shops", (Column("shop", None, is_key=True), Column("city", ("Rome", "Oslo"))))
SCHEMA = Schema((CARS, SHOPS))
FILLING = {
    "cars": [(NAMES[number % 10], 10 * number, 1 + number % 2) for number in range(10)],
    "shops": [(1, "Rome"), (2, "Oslo")],
}


def all_of(*names: str) -> str:
    """A product of tables of cars, each with a name of its own."""
    return ", ".join(f"cars {name}" for name in names)


def doubled(times: int) -> str:
    """Tables of tables: each is the product of the one before with itself."""
    tables = ["t0 AS (SELECT 1 x FROM cars)"]
    tables += [f"t{n} AS (SELECT p.x FROM t{n - 1} p, t{n - 1} q)" for n in range(1, times)]
    return f"WITH {', '.join(tables)} SELECT x FROM t{times - 1}"


#: What would read or change something else than the tables, and what SQLite's authorizer must refuse by itself.
FORBIDDEN = {
    "attach": "ATTACH 'other.db' AS other",
    "attach memory": "ATTACH ':memory:' AS other",
    "detach": "DETACH main",
    "write a file": "VACUUM INTO 'other.db'",
    "read a setting": "PRAGMA query_only",
    "change a setting": "PRAGMA query_only = OFF",
    "limit the whole process": "PRAGMA hard_heap_limit = 1",
    "a setting as a table": "SELECT * FROM pragma_table_info('cars')",
    "load an extension": "SELECT load_extension('evil')",
    "insert": "INSERT INTO cars SELECT * FROM cars",
    "update": "UPDATE cars SET price = 0",
    "delete": "DELETE FROM cars",
    "delete and return": "DELETE FROM cars RETURNING *",
    "drop": "DROP TABLE cars",
    "alter": "ALTER TABLE cars RENAME TO carts",
    "create": "CREATE TABLE more (a)",
    "create for a time": "CREATE TEMP TABLE more AS SELECT 1",
    "create a view": "CREATE VIEW more AS SELECT 1",
    "begin": "BEGIN EXCLUSIVE",
    "savepoint": "SAVEPOINT here",
    "analyze": "ANALYZE",
    "the list of tables": "SELECT * FROM sqlite_master",
    "their number": "SELECT COUNT(*) FROM sqlite_schema",
    "endless recursion": "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT COUNT(*) FROM r",
    "recursion in a subquery": (
        "SELECT n FROM (WITH RECURSIVE r(n) AS (VALUES (1) UNION ALL SELECT n FROM r) SELECT n FROM r) AS q"
    ),
    "a gigabyte of noise": "SELECT randomblob(1000000000)",
    "a gigabyte of zeros": "SELECT zeroblob(1000000000)",
    "a gigabyte of spaces": "SELECT printf('%1000000000d', 1)",
    "hexadecimal": "SELECT hex(name) FROM cars",
    "replace": "SELECT replace(name, 'a', 'bbbbbbbb') FROM cars",
    "one long text": "SELECT group_concat(name) FROM cars",
    "a slow pattern": "SELECT 'aaaaaaaaaa' LIKE '%a%a%a%a%a%b'",
    "another pattern": "SELECT 'aaaaaaaaaa' GLOB '*a*a*a*a*a*b'",
    "a text of characters": "SELECT char(65, 66, 67)",
    "printf by its other name": "SELECT format('%1000000000d', 1)",
    "names that are joined": "SELECT string_agg(name, ',') FROM cars",
    "rows from nothing": "SELECT * FROM generate_series(1, 1000000000)",
    "an expression of another language": "SELECT 1 FROM cars WHERE name REGEXP '(a+)+b'",
    "an order that nobody has defined": "SELECT name FROM cars ORDER BY name COLLATE evil",
    "the list of temporary tables": "SELECT * FROM temp.sqlite_master",
    "json": "SELECT json('[1]')",
    "the version": "SELECT sqlite_version()",
    "the time": "SELECT CURRENT_TIMESTAMP",
    "a random number": "SELECT random()",
}

#: A text of 3,600 letters, which costs SQLite a few instructions.
LONG = f"(SELECT t||t||t||t||t||t c FROM (SELECT '{'x' * 600}' t))"

#: What is refused or stopped for another reason.
REFUSED = {
    "two statements": "SELECT 1; DROP TABLE cars",
    "a second one that is empty": "SELECT 1;;",
    "reindex": "REINDEX",
    "the program of a query": "EXPLAIN SELECT * FROM cars",
    "values": "VALUES (1)",
    "nothing": "",
    "spaces": "  \n ",
    "a comment": "-- SELECT 1",
    "a comment without an end": "/* SELECT 1",
    "a quote without an end": "SELECT 'red",
    "no such column": "SELECT cost FROM cars",
    "a parameter": "SELECT ?",
    "a named parameter": "SELECT :name",
    "NUL": "SELECT 1\0",
    "NUL before a second statement": "SELECT 1\0; DROP TABLE cars",
    "half of a surrogate pair": "SELECT '\ud800'",
    "a text that is not UTF-8": "SELECT CAST(x'ff' AS TEXT)",
    "ten megabytes": "SELECT " + "1" * 10_000_000,
    "ten megabytes of another alphabet": "SELECT '" + "é" * 10_000_000 + "'",
    "deep parentheses": "SELECT " + "(" * 400 + "1" + ")" * 400,
    "deep signs": "SELECT " + "- " * 400 + "1",
    "deep sums": "SELECT " + "+".join("1" * 400),
    "deep tables": "SELECT * FROM " + "(SELECT * FROM " * 40 + "cars" + ")" * 40,
    "deep negations": "SELECT " + "NOT " * 240 + "1",
    "many columns": "SELECT " + ",".join("1" * 300),
    "many stars": "SELECT " + ",".join("*" * 50) + " FROM cars",
    "many tables": "SELECT 1 FROM " + ",".join(["cars"] * 70),
    "many UNIONs": "SELECT 1" + " UNION SELECT 1" * 60,
    "joins upon joins": "SELECT 1 FROM cars" + " NATURAL JOIN cars" * 53,
    "subqueries in conditions": "SELECT 1 FROM cars WHERE " + "EXISTS (SELECT 1 FROM cars WHERE " * 15 + "1" + ")" * 15,
    "the table of pages": "SELECT * FROM dbstat",
    "json as a table": "SELECT * FROM json_each('[1]')",
    "a mark of the order of bytes": "\ufeffSELECT 1",
    "a late row": f"SELECT 1 FROM {all_of(*'abcdefgh')} LIMIT 1 OFFSET 99999999",
    "the sum of a product": f"SELECT price FROM cars WHERE price = (SELECT SUM(a.price) FROM {all_of(*'abcdef')})",
    "a window over a product": f"SELECT MAX(c||b.name) OVER (ORDER BY a.price) FROM {LONG}, {all_of(*'abdef')}",
    "long texts that are sorted": f"SELECT c FROM {LONG}, {all_of(*'abdefg')} ORDER BY c, a.price",
    "long texts, each once": (
        f"SELECT COUNT(*) FROM (SELECT DISTINCT c, a.name, b.name, d.name, e.name FROM {LONG}, {all_of(*'abde')})"
    ),
    "tables of tables": doubled(18),
    "tables of tables in a subquery": f"SELECT x FROM ({doubled(18)})",
    "an overflow": "SELECT SUM(9223372036854775807) FROM cars",
    "rows without end": f"SELECT a.name FROM {all_of(*'abcd')}",
    "a product that is counted": f"SELECT COUNT(*) FROM {all_of(*'abcdefghij')}",
    "a product that is sorted": f"SELECT a.name FROM {all_of(*'abcdefghij')} ORDER BY b.name, c.name",
    "a product of long texts that is sorted": f"SELECT '{'x' * 700}', a.name FROM {all_of(*'abcdefg')} ORDER BY b.name",
    "a product of long texts that is kept": (
        f"SELECT COUNT(*) FROM "
        f"(SELECT DISTINCT a.name||b.name||c.price||d.price||'{'x' * 700}' FROM {all_of(*'abcde')})"
    ),
    "texts that grow": "SELECT " + "||".join(f"(SELECT {'||'.join(['name'] * 8)} FROM cars)" for _ in range(10)),
    "a text that is too long": (
        f"SELECT a||a||a||a FROM (SELECT b||b||b||b a FROM (SELECT '{'x' * 600}' b FROM cars))"
    ),
}

#: Unusual, and permitted.
PERMITTED = {
    "a join": "SELECT COUNT(*) FROM cars JOIN shops USING (shop) WHERE city = 'Rome'",
    "a subquery": "SELECT AVG(price) FROM (SELECT price FROM cars) WHERE price > (SELECT MIN(price) FROM cars)",
    "other case": "sElEcT Name FROM CARS wHeRe PRICE > 10 Order By price Limit 3",
    "the end of a statement": "SELECT name FROM cars;",
    "a window": "SELECT SUM(price) OVER (ORDER BY name) FROM cars",
    "another alphabet": "SELECT 'é😀' FROM cars",
    "division by zero": "SELECT 1 / 0",
    "infinity": "SELECT 9e999, -9e999, 9e999 - 9e999",
    "no rows": "SELECT name FROM cars WHERE price > 1000",
    "exactly as many rows as allowed": f"SELECT 1 FROM {all_of('a', 'b')}, shops",
}


@pytest.fixture(scope="module")
def database():
    with Database(SCHEMA, FILLING) as opened:
        yield opened


def contents(database: Database) -> list[tuple]:
    return [database.answer(f"SELECT * FROM {table}") for table in ("cars", "shops")]


@pytest.mark.parametrize("sql", [*FORBIDDEN.values(), *REFUSED.values()], ids=[*FORBIDDEN, *REFUSED])
def test_a_hostile_query_is_answered_with_one_line_and_changes_nothing(database, sql, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(database)
    began = time.process_time()
    answer = database.answer(sql)
    seconds = time.process_time() - began
    assert answer.rows is None
    assert answer.error
    assert "\n" not in answer.error
    assert seconds < module.MOST_SECONDS
    assert contents(database) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sql", FORBIDDEN.values(), ids=FORBIDDEN)
def test_sqlite_itself_refuses_what_is_forbidden(database, sql):
    """The authorizer alone does: nothing has looked at the text before."""
    database.answer("SELECT 1")  # it winds up the clock
    with pytest.raises(sqlite3.Error, match=r"not authorized|authorization denied|prohibited|no such"):
        database._connection.execute(sql).fetchall()


@pytest.mark.parametrize("sql", PERMITTED.values(), ids=PERMITTED)
def test_an_unusual_query_is_permitted(database, sql):
    answer = database.answer(sql)
    assert answer.error is None
    assert answer.rows is not None


def test_the_rows_are_those_of_the_table(database):
    assert database.answer("SELECT name, price FROM cars WHERE price < 20") == (((NAMES[0], 0), (NAMES[1], 10)), None)
    assert database.answer("SELECT name FROM cars WHERE price < 0") == ((), None)


@pytest.mark.parametrize("count", [module.MOST_ROWS, module.MOST_ROWS + 1])
def test_the_limit_of_rows_is_exact(count):
    table = Table("numbers", (Column("n", None),))
    with Database(Schema((table,)), {"numbers": [(n,) for n in range(count)]}) as database:
        answer = database.answer("SELECT n FROM numbers")
    assert (answer.rows is None) == (count > module.MOST_ROWS)


def test_a_query_is_stopped_at_the_same_instruction_each_time(database):
    """The answer does not depend on how fast the machine is, as long as the clock does not stop it."""
    names = "abcde"
    limits = [f"SELECT COUNT(*) FROM {all_of(*names[:count])}" for count in range(1, 6)]
    first = [database.answer(sql) for sql in limits]
    assert first[0].rows == ((10,),)
    assert first[-1].rows is None
    assert [database.answer(sql) for sql in limits] == first


def test_the_clock_stops_a_query_on_a_slow_machine(database, monkeypatch):
    monkeypatch.setattr(module, "MOST_STEPS", 10**12)
    began = time.thread_time()
    answer = database.answer(f"SELECT COUNT(*) FROM {all_of(*'abcdefghij')}")
    assert answer == (None, "interrupted")
    assert time.thread_time() - began >= module.MOST_SECONDS


def test_a_machine_that_does_other_work_stops_nothing():
    """The thread may wait for the processor as long as it has to: a clock on the wall stopped right queries."""

    def waiting(*arguments):
        time.sleep(module.MOST_SECONDS)
        return slow._permission(*arguments)

    with Database(SCHEMA, FILLING) as slow:
        slow._connection.set_authorizer(waiting)
        assert slow.answer("SELECT MAX(price) FROM cars").rows == ((90,),)


def test_the_clock_also_stops_what_is_still_read(database, monkeypatch):
    monkeypatch.setattr(module, "MOST_SECONDS", -1)
    assert database.answer("SELECT name FROM cars").rows is None


def test_many_requests_are_too_many(database, monkeypatch):
    monkeypatch.setattr(module, "MOST_REQUESTS", 2)
    assert database.answer("SELECT name FROM cars").rows is not None
    assert database.answer("SELECT name, price FROM cars").rows is None


def test_a_database_is_closed():
    with Database(SCHEMA, FILLING) as database:
        pass
    with pytest.raises(sqlite3.ProgrammingError):
        database._connection.execute("SELECT 1")


MEMORY = """
import resource, sys
from importlib import import_module
sys.path.insert(0, sys.argv[1])
tests = import_module("parity_tests.test_text2sql_database")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with tests.Database(tests.SCHEMA, tests.FILLING) as database:
    tests.contents(database)
    before = peak()
    for sql in (*tests.FORBIDDEN.values(), *tests.REFUSED.values()):
        if len(sql) < 10_000:
            database.answer(sql)
print(peak() - before)
"""


def test_no_hostile_query_takes_much_memory():
    """Of all of them together, in a process of their own, at most as much as MOST_STEPS rows of a text would take."""
    root = str(module.__file__).rpartition("/numpygpt/")[0]
    done = subprocess.run([sys.executable, "-c", MEMORY, root], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40 * 1024 * (1 if sys.platform == "linux" else 1024)
