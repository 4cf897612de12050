"""The tensors of a parity report as maps, with a row for each layer and a column for each tensor in a layer."""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torchgpt.checks.parity import Row



class Color(NamedTuple):
    """The colors of a cell whose tensor uses at most `share` of its budget, and more than the share before."""

    share: float
    of_cell: str
    of_text: str


#: The colors from light to dark. Each share is about three times the share before.
COLORS = (
    Color(0.01, "#f0f4fa", "#1a1a1a"),
    Color(0.03, "#cfdff0", "#1a1a1a"),
    Color(0.1, "#9dc0e0", "#1a1a1a"),
    Color(0.3, "#5a95c9", "#ffffff"),
    Color(1.0, "#20598f", "#ffffff"),
)
#: The colors of a tensor that is wrong.
WRONG = Color(math.inf, "#c8102e", "#ffffff")

BLOCK = re.compile(r"trf_blocks\.(\d+)\.?")
#: The numbers that stand for the layer before the blocks 0, 1, ... and for the layer after them.
EMBEDDINGS, HEAD = -1.0, math.inf


class Cell(NamedTuple):
    """A tensor in a map.

    numbers   its numbers, as texts, by what they are
    color     the index of its color; None if it is wrong
    mark      the text in the cell
    """

    name: str
    numbers: dict[str, str]
    color: int | None
    mark: str

    @property
    def title(self) -> str:
        """The name and all numbers in one line."""
        return f"{self.name}: " + ", ".join(f"{what} {number}" for what, number in self.numbers.items())


class Map(NamedTuple):
    """The map of the tensors of one kind.

    layers   for each layer its name and its cells, one for each column; None if the layer has no such tensor
    """

    caption: str
    columns: list[str]
    layers: list[tuple[str, list[Cell | None]]]


def maps(rows: Sequence["Row"]) -> list[Map]:
    """The maps of activations, of their gradients, and of gradients of parameters, each in the report's order."""
    activations = {row.name for row in rows}
    kinds: dict[str, list[Row]] = {
        "Forward: activations": [],
        "Backward: gradients of activations": [],
        "Backward: gradients of parameters": [],
    }
    forward, of_activations, of_parameters = kinds.values()
    for row in rows:
        if not row.name.startswith("d_"):
            forward.append(row)
        elif row.name.removeprefix("d_") in activations:
            of_activations.append(row)
        else:
            of_parameters.append(row)
    return [_map(caption, mapped) for caption, mapped in kinds.items() if mapped]


def _map(caption: str, rows: Sequence["Row"]) -> Map:
    cells = {_place(row.name): cell_of(row) for row in rows}
    layers = sorted({layer for layer, _ in cells})
    columns = list(dict.fromkeys(column for _, column in cells))
    return Map(
        caption, columns, [(_layer(layer), [cells.get((layer, column)) for column in columns]) for layer in layers]
    )


def _place(name: str) -> tuple[float, str]:
    """The layer of a tensor, counted from the embeddings to the head, and its name within it."""
    name = name.removeprefix("d_")
    block = BLOCK.match(name)
    if block:
        return float(block[1]), name[block.end() :] or "output"
    return EMBEDDINGS if "_emb" in name else HEAD, name


def _layer(layer: float) -> str:
    return {EMBEDDINGS: "embeddings", HEAD: "head"}.get(layer) or f"block {layer:.0f}"


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
    color = next(index for index, color in enumerate(COLORS) if row.used <= color.share)
    return Cell(row.name, numbers, color, f"{100 * row.used:.0f}")
