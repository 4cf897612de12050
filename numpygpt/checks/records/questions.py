"""`questions`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.text2sql import questions

BUGS = (
    Bug(
        "split_by_the_question",
        "the question decides what is held out, so that a query of the test is in the training in other words",
        "arXiv:1806.09029, section 4",
        "text2sql.training",
        ("nothing_leaks", "wording_decides_nothing"),
        (
            Change(
                "text2sql.questions:held_out",
                'f"{example.schema}|{example.sql}"',
                "example.prompt",
            ),
        ),
    ),
    Bug(
        "test_is_trained_on",
        "what is held out for the test is in the training, too",
        "no public report known",
        "text2sql.training",
        ("nothing_leaks", "wording_decides_nothing"),
        (Change("text2sql.questions:training_examples", "if not held_out(example):", "if example:"),),
    ),
)

RECORD = BugsOnly(questions, "it draws questions and queries", BUGS)
