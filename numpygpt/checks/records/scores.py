"""`scores`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.text2sql import scores

BUGS = (
    Bug(
        "order_forgotten",
        "rows are compared as a bag even where the reference says ORDER BY",
        "no public report known",
        "text2sql.verdict.1",
        ("judged_by_hand", "judged_by_sqlite"),
        (Change("text2sql.scores:Judge.verdict", "ordered=self._ordered", "ordered=False"),),
    ),
    Bug(
        "order_demanded",
        "rows are compared in their order even where the reference gives them none",
        "no public report known",
        "text2sql.verdict.0",
        ("judged_by_hand", "judged_by_sqlite"),
        (Change("text2sql.scores:Judge.verdict", "ordered=self._ordered", "ordered=True"),),
    ),
    Bug(
        "refused_as_no_rows",
        "a query that is refused has no rows, which are those of a reference that finds none",
        "no public report known",
        "text2sql.verdict.7",
        ("judged_by_hand", "judged_by_sqlite"),
        (
            Change(
                "text2sql.scores:same_rows",
                "_rounded(answer.rows), _rounded(reference.rows)",
                "_rounded(answer.rows or ()), _rounded(reference.rows or ())",
            ),
            Change("text2sql.scores:same_rows", "if answer.rows is None or reference.rows is None:", "if False:"),
        ),
    ),
)

RECORD = BugsOnly(scores, "it compares rows", BUGS)
