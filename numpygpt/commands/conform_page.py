"""The report of `numpygpt conform` as an HTML page: a badge and a table, in one file, without scripts."""

from collections.abc import Mapping
from typing import NamedTuple

from numpygpt.checks.conform.climbing import Climb
from numpygpt.checks.conform.judging import BAD, EMPTY, EXPECTED, NOT_SHOWN, PASSED, SKIPPED
from numpygpt.checks.conform.rungs import RUNGS
from numpygpt.commands.pages import rendered

#: {state of a rung: the class and the mark of its cell}.
CELLS = {
    PASSED: ("passed", "✓"),
    NOT_SHOWN: ("left", "not shown"),
    EMPTY: ("left", ""),
    SKIPPED: ("left", "skipped"),
    EXPECTED: ("left", "expected failure"),
    **dict.fromkeys(BAD, ("wrong", "✗")),
}
#: How wide a character of the badge is, about, in its own units, and the free space beside a text.
CHARACTER, SPACE = 6.5, 10
LABEL = "numpygpt conformance"


class Badge(NamedTuple):
    """A label and what it says, with the widths of both in the units of the drawing."""

    label: str
    says: str
    conforms: bool

    @property
    def widths(self) -> tuple[float, float]:
        """Of the label and of what it says."""
        label, says = (len(text) * CHARACTER + 2 * SPACE for text in (self.label, self.says))
        return label, says


def badge(found: Climb) -> Badge:
    """The badge: how many of the rungs passed wherever they were judged, and in how many cases if not in all."""
    if not found.conforms:
        return Badge(LABEL, "fails", conforms=False)
    cases = len(found.outcomes)
    where = "" if found.computed == cases else f" in {found.computed} of {cases} cases"
    return Badge(LABEL, f"{len(found.rungs)} of {len(RUNGS)} rungs{where}", conforms=True)


def page(found: Climb, summary: str, facts: Mapping[str, str]) -> str:
    """The page, from the template `conform_page.html`. Every text is escaped.

    summary   a line that says how it ended
    facts     what was asked, and how it was judged
    """
    return rendered(
        "numpygpt",
        "conform_page.html",
        summary=summary,
        facts=facts,
        badge=badge(found),
        rungs=RUNGS,
        counts={rung: found.count_of(rung) for rung in RUNGS},
        outcomes=found.outcomes,
        smallest=found.smallest,
        evidence=found.evidence,
        cells=CELLS,
    )
