"""A picture of the accuracy after each stage of a training."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.pictures.figure import PALETTE, check_finite, new_figure, write_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any  # matplotlib is imported where a figure is drawn


def plot_stages(
    stages: Sequence[str], accuracies: Mapping[str, Sequence[float]], path: str | os.PathLike[str] | None = None
) -> Figure:
    """A group of bars for each stage, and in it a bar for each accuracy.

    stages       the names of the stages
    accuracies   {what is measured: the share of right answers after each stage, from 0 to 1}

    If a `path` is given, the figure is also written there, as PNG. Raises InputError if there is nothing to draw, for
    accuracies that are not one for each stage or not finite, and as `plot_losses` does for the path and matplotlib.
    """
    if not stages or not accuracies:
        raise InputError(f"{len(stages)} stages and {len(accuracies)} accuracies are to be drawn; expected one of each")
    lengths = {name: len(shares) for name, shares in accuracies.items()}
    if set(lengths.values()) != {len(stages)}:
        raise InputError(f"the accuracies {lengths} are not one for each of the {len(stages)} stages")
    check_finite(np.array(list(accuracies.values())), "the accuracies")
    figure, axes = new_figure()
    width = 0.8 / len(accuracies)
    for place, (name, shares) in enumerate(accuracies.items()):
        offset = (place - (len(accuracies) - 1) / 2) * width
        bars = axes.bar(
            np.arange(len(stages)) + offset,
            100 * np.array(shares),
            width,
            label=name,
            color=PALETTE[place % len(PALETTE)],
        )
        axes.bar_label(bars, fmt="%.0f")
    axes.set_xticks(range(len(stages)), stages)
    axes.set(ylabel="Right answers (%)", ylim=(0, 105))
    axes.set_axisbelow(True)  # the grid is drawn behind the bars
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(accuracies))
    if path is not None:
        write_png(figure, path)
    return figure
