"""A picture of probabilities at several temperatures."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpygpt.errors import InputError
from numpygpt.pictures.figure import PALETTE, Series, new_figure, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = Any  # matplotlib is imported where a figure is drawn


def plot_temperatures(
    words: Sequence[str],
    probabilities: Mapping[int | float, Series],
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Bars of the words' probabilities at several temperatures, side by side at each word (the book's figure 5.14).

    probabilities   {temperature: one probability a word}, at most as many temperatures as PALETTE has colors

    If a `path` is given, the figure is also written there, as PNG. Raises InputError for no words, for no series or
    too many, for a series that is not as long as `words`, and as `plot_losses` does for the path and for matplotlib.
    """
    lengths = [len(series) for series in probabilities.values()]
    if not words or not 0 < len(lengths) <= len(PALETTE) or set(lengths) != {len(words)}:
        raise InputError(
            f"there are {len(words)} words and series of {lengths} probabilities; "
            f"expected 1 to {len(PALETTE)} series with one probability for each word"
        )
    figure, axes = new_figure()
    width = 0.8 / len(probabilities)
    for i, (temperature, series) in enumerate(probabilities.items()):
        left_edges = [word - 0.4 + i * width for word in range(len(words))]
        axes.bar(left_edges, series, width, align="edge", color=PALETTE[i], label=f"Temperature = {temperature:g}")
    axes.set_xticks(range(len(words)), words, rotation=45, ha="right")
    axes.set_ylabel("Probability")
    axes.set_axisbelow(True)  # the grid is drawn behind the bars
    axes.legend(frameon=False)
    if path is not None:
        write_png(figure, path)
    return figure
