"""A picture of what each scheme of quantization costs a model."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.evaluation.quantization import Compared
from numpygpt.pictures.figure import PALETTE, Series, blank_figure, check_finite, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = Any  # matplotlib is imported where a figure is drawn


def plot_quantization(rows: Sequence[Compared], path: str | os.PathLike[str] | None = None) -> Figure:
    """Three bars for each scheme: bytes, error of the weights, and how the perplexity of a text changes.

    rows   what `numpygpt.evaluation.quantization.compared` returned: first the model as it is

    If a `path` is given, the figure is also written there, as PNG. Raises InputError if no scheme is compared, for
    perplexities that are not finite, and as `plot_losses` does for the path and for matplotlib.
    """
    whole, *schemes = rows
    if not schemes:
        raise InputError("no scheme of quantization is compared; expected at least one")
    perplexities = np.array([row.score.perplexity for row in rows])
    check_finite(perplexities, "the perplexities")
    figure = blank_figure(9, 1.4 + 0.3 * len(schemes))
    panels = figure.subplots(1, 3, sharey=True)
    _bars(panels[0], [row.share for row in schemes], "bytes, of those in float32", PALETTE[0])
    _bars(panels[1], [row.error for row in schemes], "error of the weights, relative", PALETTE[1])
    changes = 100 * (perplexities[1:] / whole.score.perplexity - 1)
    _bars(panels[2], changes, f"change of the perplexity {whole.score.perplexity:.4g}, %", PALETTE[2])
    panels[0].set_yticks(range(len(schemes)), [str(row.scheme) for row in schemes])
    panels[0].invert_yaxis()  # the first scheme is at the top, as in the table
    if path is not None:
        write_png(figure, path)
    return figure


def _bars(axes: Axes, lengths: Series, label: str, color: str) -> None:
    axes.barh(range(len(lengths)), lengths, color=color)
    axes.set_xlabel(label)
    axes.grid(visible=True, axis="x", color="0.9")
    axes.set_axisbelow(True)  # the grid is drawn behind the bars
    for side in ("right", "top"):
        axes.spines[side].set_visible(False)
