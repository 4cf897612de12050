"""What all pictures share: figures of their own (no window opens, no pyplot state is touched), colors, files."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from numpygpt.errors import InputError
from numpygpt.shapes import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = Any  # matplotlib is imported where a figure is drawn

Series: TypeAlias = Sequence[int | float] | Array

#: Blue, vermilion and the rest of Okabe & Ito's palette, which color-blind readers can tell apart.
TRAINING_COLOR = "#0072B2"
VALIDATION_COLOR = "#D55E00"
PALETTE = (TRAINING_COLOR, VALIDATION_COLOR, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")

#: White space as a label shows it.
VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})


def token_label(token: bytes) -> str:
    """A token as a picture can show it: white space made visible, and bytes that are no text in hexadecimal."""
    text = token.decode(errors="backslashreplace").translate(VISIBLE)
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def new_figure() -> tuple[Figure, Axes]:
    """A figure with one pair of axes, with a grid and without a frame on the right."""
    figure = blank_figure(7, 4.2)
    axes = figure.add_subplot()
    axes.spines["right"].set_visible(False)
    axes.grid(visible=True, color="0.9")
    return figure, axes


def blank_figure(width: int | float, height: int | float) -> Figure:
    """An empty figure of this size in inches. InputError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure as MatplotlibFigure
    except ImportError as error:
        raise InputError("matplotlib is not installed, and plots need it: pip install matplotlib") from error
    return MatplotlibFigure(figsize=(width, height), layout="constrained")


def write_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the figure. InputError for a path that cannot be written."""
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise InputError(f"cannot write the picture {os.fspath(path)}: {error.strerror}") from error
