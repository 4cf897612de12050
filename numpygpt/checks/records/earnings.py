"""`earnings`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.text2sql import earnings

BUGS = (
    Bug(
        "all_that_runs_earns_all",
        "a query earns all if it runs, whatever its rows are, so that a model learns to write any query",
        "no public report known",
        "text2sql.earned",
        ("earned_by_hand", "earned_by_sqlite"),
        (Change("text2sql.earnings:reward_of", "if verdict.right:", "if verdict.runs:"),),
    ),
    Bug(
        "errors_earn",
        "a query that SQLite refuses earns what one earns that runs",
        "no public report known",
        "text2sql.earned",
        ("earned_by_hand", "earned_by_sqlite"),
        (Change("text2sql.earnings:reward_of", "RUNS if verdict.runs else REFUSED", "RUNS"),),
    ),
)

RECORD = BugsOnly(earnings, "it turns a verdict into a number", BUGS)
