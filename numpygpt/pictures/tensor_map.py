"""The tensors of a training step as maps, with a row for each layer and a column for each tensor in a layer."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple


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
#: A tensor of the optimizer: its step, what it is, and the parameter.
STEP = re.compile(r"step(\d+)\.(exp_avg\.|exp_avg_sq\.|d_)?(.+)")
STEP_KINDS = {"exp_avg.": "first moments", "exp_avg_sq.": "second moments", "d_": "gradients", None: "parameters"}
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


def maps(cells: Sequence[Cell]) -> list[Map]:
    """The maps of activations, of their gradients, of gradients of parameters, and of each step of an optimizer.

    The cells keep their order within each map.
    """
    activations = {cell.name for cell in cells}
    kinds: dict[str, list[Cell]] = {}
    for cell in cells:
        kinds.setdefault(_kind(cell.name, activations), []).append(cell)
    return [_map(caption, of_kind) for caption, of_kind in kinds.items()]


def _kind(name: str, activations: set[str]) -> str:
    step = STEP.match(name)
    if step:
        return f"Step {step[1]}: {STEP_KINDS[step[2]]}"
    if name.startswith("generated."):
        return "Generation"
    if not name.startswith("d_"):
        return "Forward: activations"
    if name.removeprefix("d_") in activations and not name.endswith((".weight", ".bias", ".scale", ".shift")):
        return "Backward: gradients of activations"
    return "Backward: gradients of parameters"


def _map(caption: str, of_kind: Sequence[Cell]) -> Map:
    cells = {_place(cell.name): cell for cell in of_kind}
    layers = sorted({layer for layer, _ in cells})
    columns = list(dict.fromkeys(column for _, column in cells))
    return Map(
        caption, columns, [(_layer(layer), [cells.get((layer, column)) for column in columns]) for layer in layers]
    )


def _place(name: str) -> tuple[float, str]:
    """The layer of a tensor, counted from the embeddings to the head, and its name within it."""
    step = STEP.match(name)
    name = (step[3] if step else name).removeprefix("d_")
    block = BLOCK.match(name)
    if block:
        return float(block[1]), name[block.end() :] or "output"
    return EMBEDDINGS if "_emb" in name else HEAD, name


def _layer(layer: float) -> str:
    return {EMBEDDINGS: "embeddings", HEAD: "head"}.get(layer) or f"block {layer:.0f}"


def color_of(used: float) -> int:
    """The index of the color of a tensor that uses this share of its budget, at most 1."""
    return next(index for index, color in enumerate(COLORS) if used <= color.share)
