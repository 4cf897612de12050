"""A picture of the error of numerical derivatives against their step."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.pictures.figure import PALETTE, Series, new_figure, write_png
from numpygpt.shapes import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any  # matplotlib is imported where a figure is drawn


def plot_step_sizes(
    steps: Array, errors: Mapping[str, Series], path: str | os.PathLike[str] | None = None
) -> Figure:
    """The relative error of each method at each step, on logarithmic axes; float32 is dashed.

    errors   {"method, dtype": an error for each step}, at most as many as PALETTE has colors. An error of 0 or NaN is
             not drawn

    If a `path` is given, the figure is also written there, as PNG. Raises InputError for series that are not as long as
    `steps`, or too many, and as `plot_losses` does for the path and for matplotlib.
    """
    lengths = [len(series) for series in errors.values()]
    if not 0 < len(lengths) <= len(PALETTE) or set(lengths) != {len(steps)}:
        raise InputError(
            f"there are {len(steps)} steps and series of {lengths} errors; expected 1 to {len(PALETTE)} series with "
            f"one error for each step"
        )
    figure, axes = new_figure()
    for color, (method, series) in zip(PALETTE, errors.items(), strict=False):
        drawn = np.where(np.asarray(series) > 0, series, np.nan)
        axes.plot(steps, drawn, "--" if "float32" in method else "-", color=color, marker=".", label=method)
    axes.set(xscale="log", yscale="log", xlabel="Step h", ylabel="Relative error of the derivative")
    axes.legend(frameon=False, ncols=2)
    if path is not None:
        write_png(figure, path)
    return figure
