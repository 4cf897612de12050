"""The parity report as a picture: its heat maps, for use where HTML cannot be shown."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpygpt.pictures.figure import blank_figure, write_png
from torchgpt.commands.parity_map import COLORS, WRONG, Map, maps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from torchgpt.checks.parity import Row
else:
    Axes = Figure = Any  # matplotlib is imported where a figure is drawn

CELL = 0.22  # inches
COLUMN_NAMES = 1.3


def plot_parity(rows: Sequence["Row"], summary: str, path: str | os.PathLike[str] | None = None) -> Figure:
    """The maps, one below the other. A cell shows the share of its budget that a tensor uses, in percent.

    rows      the rows of the report
    summary   the line above the picture

    If a `path` is given, the figure is also written there, as PNG. Raises InputError as `plot_losses` does for the path
    and for matplotlib.
    """
    drawn = maps(rows)
    widest = max(len(each.columns) for each in drawn)
    heights = [CELL * len(each.layers) + COLUMN_NAMES for each in drawn]
    figure = blank_figure(CELL * widest + 1.2, sum(heights) + 0.5)
    figure.suptitle(f"numpygpt against PyTorch: {summary}", fontsize=8)
    panels = figure.subplots(len(drawn), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, each in zip(panels, drawn, strict=True):
        _draw(axes, each, widest)
    if path is not None:
        write_png(figure, path)
    return figure


def _draw(axes: Axes, drawn: Map, widest: int) -> None:
    from matplotlib.patches import Rectangle

    for y, (_, cells) in enumerate(drawn.layers):
        for x, cell in enumerate(cells):
            if cell is None:
                continue
            color = WRONG if cell.color is None else COLORS[cell.color]
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=color.of_cell, edgecolor="white"))
            axes.text(x + 0.5, y + 0.5, cell.mark, color=color.of_text, fontsize=6, ha="center", va="center")
    axes.set(xlim=(0, widest), ylim=(len(drawn.layers), 0), aspect="equal")
    axes.set_title(drawn.caption, loc="left", fontsize=8)
    axes.xaxis.tick_top()
    axes.set_xticks([x + 0.5 for x in range(len(drawn.columns))], drawn.columns, rotation=90, fontsize=6)
    axes.set_yticks([y + 0.5 for y in range(len(drawn.layers))], [name for name, _ in drawn.layers], fontsize=6)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
