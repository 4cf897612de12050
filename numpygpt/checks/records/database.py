"""`database`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.text2sql import database

BUGS = (
    Bug(
        "every_function_permitted",
        "a query may call every function, also one that loads an extension or makes a text of a gigabyte",
        "no public report known",
        "text2sql.refused",
        ("functions_refused", "functions_asked_for"),
        (
            Change(
                "text2sql.database:Database._permission",
                '(second or "").lower() in FUNCTIONS',
                "True",
            ),
        ),
    ),
)

RECORD = BugsOnly(database, "it runs queries in SQLite", BUGS)
