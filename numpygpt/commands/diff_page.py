"""A comparison with a trace as an HTML page: maps, histograms and the diagnosis, in one file, without scripts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from numpygpt.checks.diff import MISSING, Diff, Finding
from numpygpt.commands.pages import rendered
from numpygpt.pictures.tensor_map import COLORS, WRONG, Cell, color_of, maps
from numpygpt.shapes import Array

BARS = 40
#: The size of a histogram's drawing, in its own units.
WIDTH, HEIGHT = 480, 120


class Histogram(NamedTuple):
    """How many values lie in each of the BARS intervals between lowest and highest, as heights of bars."""

    lowest: float
    highest: float
    reference: list[float]
    candidate: list[float]


class Place(NamedTuple):
    """Where two tensors differ most: the index, and both values."""

    at: str
    reference: float
    candidate: float


def page(
    found: Diff,
    summary: str,
    facts: Mapping[str, str],
    diagnosis: Sequence[str],
    first: tuple[Array, Array] | None,
) -> str:
    """The page, from the template `diff_page.html`. Every text is escaped.

    summary     a line that says how the comparison ended
    facts       what was compared, and how
    diagnosis   the lines of the diagnosis
    first       the reference's and the candidate's array of the first wrong tensor; None if they cannot be shown
    """
    cells = [cell_of(finding) for finding in found.findings]
    return rendered(
        "numpygpt",
        "diff_page.html",
        summary=summary,
        facts=facts,
        diagnosis=diagnosis,
        colors=COLORS,
        wrong=WRONG,
        maps=maps(cells),
        cells=cells,
        first=found.first.name if found.first else "",
        histogram=None if first is None else histogram(*first),
        place=None if first is None else most_different(*first),
        width=WIDTH,
        height=HEIGHT,
    )


def cell_of(finding: Finding) -> Cell:
    """The cell of a tensor."""
    comparison = finding.comparison
    numbers = {
        "error": f"{comparison.error:.1e}",
        "budget": f"{comparison.allowed:.1e}",
        "used": f"{comparison.used:.2g}",
        "verdict": comparison.fault or finding.verdict,
    }
    if finding.verdict == "agrees":
        return Cell(finding.name, numbers, color_of(comparison.used), f"{100 * comparison.used:.0f}")
    return Cell(finding.name, numbers, None, "?" if finding.verdict == MISSING else "✗")


def histogram(reference: Array, candidate: Array) -> Histogram | None:
    """The histograms of the finite values of both over the same intervals; None without such values."""
    values = [array[np.isfinite(array)].astype(np.float64) for array in (reference, candidate)]
    both = np.concatenate(values)
    if not both.size:
        return None
    lowest, highest = float(both.min()), float(both.max())
    if not np.isfinite(highest - lowest):
        return None
    counts = [np.histogram(part, BARS, (lowest, highest))[0] for part in values]
    tallest = max(1, *(int(count.max()) for count in counts))
    heights = [[HEIGHT * int(number) / tallest for number in count] for count in counts]
    return Histogram(lowest, highest, *heights)


def most_different(reference: Array, candidate: Array) -> Place | None:
    """Where the two differ most, or one has a NaN; None if their shapes differ."""
    if reference.shape != candidate.shape or not reference.size:
        return None
    with np.errstate(invalid="ignore"):
        difference = np.where(reference == candidate, 0, np.abs(reference.astype(np.float64) - candidate))
    flat = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
    index = tuple(int(i) for i in np.unravel_index(flat, reference.shape))
    return Place(str(index), float(reference[index]), float(candidate[index]))
