"""`writing`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.text2sql import writing

BUGS = (
    Bug(
        "prompt_learned_with_the_query",
        "the bytes of schema and question are targets, too",
        "no public report known",
        "text2sql.targets",
        ("queries_learned", "batches_as_examples"),
        (
            Change(
                "text2sql.writing:batch_of",
                "targets[place, query - 1 : len(row) - 1] = row[query:]",
                "targets[place, : len(row) - 1] = row[1:]",
            ),
        ),
    ),
)

RECORD = BugsOnly(writing, "it puts texts into batches", BUGS)
