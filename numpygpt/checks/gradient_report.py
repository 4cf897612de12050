"""The report of a gradient check: a row for each gradient, and what is wrong in words."""

from dataclasses import dataclass
from typing import NamedTuple

RIGHT, WRONG, NONE = "right", "WRONG", "no verdict"


class Row(NamedTuple):
    """What was found for the gradient of one argument.

    argument   its name, or the name of a leaf of it
    elements   how many elements it has
    compared   what was compared: "each element", or how many elements and directions
    method     "complex step" or "differences"
    error      ‖backward's - reference‖ / ‖reference‖ for the worst cotangent; infinite if it cannot be measured
    allowed    the largest error of a right gradient: an error above this is seen
    verdict    "right", "WRONG" or "no verdict"
    said       the same in words, where there is something to say
    """

    argument: str
    elements: int
    compared: str
    method: str
    error: float
    allowed: float
    verdict: str
    said: str = ""


@dataclass(frozen=True)
class Report:
    """The result of a gradient check.

    verdict   "fail" if anything is wrong, else "no verdict" if anything could not be checked, else "pass"
    reason    why, in a line
    rows      a row for each gradient
    faults    what is wrong with the functions themselves: an input that they change, a gradient of nothing
    notes     why complex step was not used
    """

    verdict: str
    reason: str
    rows: tuple[Row, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def cells(self) -> list[tuple[str, ...]]:
        """The table, row by row, under HEAD."""
        return [
            (
                f"d_{row.argument}",
                str(row.elements),
                row.compared,
                row.method,
                f"{row.error:.1e}",
                f"{row.allowed:.1e}",
                row.verdict,
            )
            for row in self.rows
        ]

    def remarks(self) -> list[str]:
        """What the table cannot say: a line each."""
        said = [f"d_{row.argument} {row.said}" for row in self.rows if row.said]
        return [*self.faults, *said, *self.notes]

    def __str__(self) -> str:
        table = [self.HEAD, *self.cells()] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["   ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
        return "\n".join([*lines, *self.remarks(), f"{self.verdict}: {self.reason}"])

    HEAD = ("gradient", "elements", "compared", "method", "error", "allowed", "verdict")
    #: For `print_table`: which columns are numbers.
    COLUMNS = "lrllrrl"


def concluded(rows: tuple[Row, ...], faults: tuple[str, ...], notes: tuple[str, ...]) -> Report:
    """The report of these rows, with its verdict."""
    wrong = [f"d_{row.argument}" for row in rows if row.verdict == WRONG]
    unjudged = [f"d_{row.argument}" for row in rows if row.verdict == NONE]
    if wrong or faults:
        reason = f"wrong: {', '.join(wrong)}" if wrong else faults[0]
        return Report("fail", reason, rows, faults, notes)
    if unjudged:
        return Report("no verdict", f"could not be judged: {', '.join(unjudged)}", rows, faults, notes)
    coarsest = max(row.allowed for row in rows)
    return Report("pass", f"any relative error above {coarsest:.1e} would have been seen", rows, faults, notes)
