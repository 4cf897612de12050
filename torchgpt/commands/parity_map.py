"""The tensors of a parity report as maps (`numpygpt.pictures.tensor_map`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from numpygpt.pictures import tensor_map
from numpygpt.pictures.tensor_map import COLORS, WRONG, Cell, Map, color_of

if TYPE_CHECKING:
    from torchgpt.checks.parity import Row

__all__ = ["COLORS", "WRONG", "Cell", "Map", "cell_of", "maps"]


def maps(rows: Sequence["Row"]) -> list[Map]:
    """The maps of activations, of their gradients, and of gradients of parameters, each in the report's order."""
    return tensor_map.maps([cell_of(row) for row in rows])


def cell_of(row: "Row") -> Cell:
    """The cell for a row of the report."""
    numbers = {
        "ours": f"{row.error:.1e}",
        "PyTorch": "-" if row.pytorch is None else f"{row.pytorch:.1e}",
        "budget": f"{row.budget:.1e}",
        "used": f"{row.used:.0%}",
        "verdict": row.verdict,
    }
    if not row.passed:
        return Cell(row.name, numbers, None, "✗")
    return Cell(row.name, numbers, color_of(row.used), f"{100 * row.used:.0f}")
