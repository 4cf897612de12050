"""What all pictures share: figures, colors and files. No window opens, and the state of pyplot is left alone."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from numpygpt.errors import InputError
from numpygpt.files import check_writable, replacing
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

#: How a label shows white space.
VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})


def token_label(token: bytes) -> str:
    """A token as a picture can show it: white space is made visible, and bytes that are not text are hexadecimal."""
    text = token.decode(errors="backslashreplace").translate(VISIBLE)
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def new_figure() -> tuple[Figure, Axes]:
    """A figure with one pair of axes, which has a grid and no line on the right."""
    figure = blank_figure(7, 4.2)
    axes = figure.add_subplot()
    axes.spines["right"].set_visible(False)
    axes.grid(visible=True, color="0.9")
    return figure, axes


def blank_figure(width: int | float, height: int | float) -> Figure:
    """An empty figure of this size in inches. InputError if matplotlib is not installed or cannot start."""
    try:
        from matplotlib.figure import Figure as MatplotlibFigure
    except ImportError as error:
        raise InputError("matplotlib is not installed, and plots need it: pip install matplotlib") from error
    except ValueError as error:
        raise InputError(f"matplotlib refuses the environment variable MPLBACKEND, unset it: {error}") from error
    return MatplotlibFigure(figsize=(width, height), layout="constrained")


def write_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the figure whole, in place of an older file. InputError for a path that cannot be written."""
    path = Path(path)
    check_writable(path)
    try:
        with replacing(path) as unfinished:
            figure.savefig(unfinished, format="png", dpi=150)
    except OSError as error:
        raise InputError(f"cannot write the picture {path}: {error.strerror or error}") from error


def check_finite(values: Array, what: str) -> None:
    """Raise InputError if any of the values is NaN or infinite and so has no place in a picture.

    what   what the values are, for the message
    """
    if not np.isfinite(values).all():
        raise InputError(f"{what} are not all finite, so they cannot be drawn: the model is damaged or has diverged")
