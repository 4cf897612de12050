"""`pairs`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.text2sql import pairs

BUGS = (
    Bug(
        "wrong_query_preferred",
        "the query that executes correctly is the rejected one of its pair",
        "no public report known",
        "text2sql.pair.chosen",
        ("preferred_by_hand", "preferred_executes"),
        (
            Change(
                "text2sql.pairs:pair_of",
                "chosen, max(wrong, key=wrong.count))",
                "max(wrong, key=wrong.count), chosen)",
            ),
        ),
    ),
)

RECORD = BugsOnly(pairs, "it compares queries that a model has written", BUGS)
