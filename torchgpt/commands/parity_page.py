"""The parity report as an HTML page: a heat map and a table, in one file, without scripts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from numpygpt.commands.pages import rendered
from torchgpt.commands.parity_map import COLORS, WRONG, cell_of, maps

if TYPE_CHECKING:
    from torchgpt.checks.parity import Row


def page(rows: Sequence["Row"], summary: str, facts: Mapping[str, str]) -> str:
    """The page, from the template `parity_page.html`. Every text is escaped.

    rows      the rows of the report
    summary   a line that says how the report ended
    facts     what was computed, and with what
    """
    return rendered(
        "torchgpt",
        "parity_page.html",
        summary=summary,
        facts=facts,
        colors=COLORS,
        wrong=WRONG,
        maps=maps(rows),
        cells=[cell_of(row) for row in rows],
    )
