"""A picture of word vectors in two dimensions."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.pictures.figure import PALETTE, VISIBLE, blank_figure, check_finite, write_png
from numpygpt.shapes import Array, Inexact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = Any  # matplotlib is imported where a figure is drawn


def plot_word_vectors(
    vectors: Inexact[Array, "N D"], labels: Sequence[str], path: str | os.PathLike[str] | None = None
) -> Figure:
    """The labels of tokens at the places of their word vectors in the plane of the two largest variances.

    vectors   rows of a token embedding
    labels    the N tokens, as `token_label` writes them

    If a `path` is given, the figure is also written there, as PNG. Raises InputError for fewer than two vectors or
    dimensions, for values that are not finite, if there are not as many labels as vectors, and as `plot_losses` does
    for the path and for matplotlib.
    """
    if min(vectors.shape) < 2 or len(labels) != len(vectors):
        raise InputError(
            f"there are {len(labels)} labels and vectors of shape {vectors.shape}; "
            f"expected as many labels as vectors, and at least two vectors of two dimensions"
        )
    check_finite(vectors, "the word vectors")
    places, shares = principal_components(vectors)
    figure = blank_figure(8, 7)
    axes = figure.add_subplot()
    axes.plot(places[:, 0], places[:, 1], alpha=0)  # text alone would not stretch the axes
    kinds = [_kind_of(label) for label in labels]
    colors = dict(zip(dict.fromkeys(kinds), PALETTE, strict=False))
    for (x, y), label, kind in zip(places, labels, kinds, strict=True):
        axes.text(x, y, label, color=colors[kind], fontsize=8, ha="center", va="center", parse_math=False)
    for kind, color in colors.items():
        axes.plot([], "s", color=color, label=kind)
    axes.set_aspect("equal", "datalim")
    figure.legend(loc="outside upper center", ncols=len(colors), frameon=False)
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second principal component ({shares[1]:.0%})")
    if path is not None:
        write_png(figure, path)
    return figure


def principal_components(
    vectors: Inexact[Array, "N D"], count: int = 2
) -> tuple[Inexact[Array, "N {count}"], Inexact[Array, "{count}"]]:
    """The coordinates of the vectors along the `count` directions of largest variance, and each one's share of it.

    The directions are the right singular vectors of the centered vectors (Jolliffe 2002, "Principal Component
    Analysis", section 3.5). A direction has no sign of its own, so its coordinate of the largest size is made positive.
    """
    centered = vectors.astype(np.float64) - vectors.mean(axis=0)
    left, spreads, _ = np.linalg.svd(centered, full_matrices=False)
    places = left[:, :count] * spreads[:count]
    largest = np.take_along_axis(places, np.abs(places).argmax(axis=0, keepdims=True), axis=0)
    variance = (spreads**2).sum() or 1.0  # it is 0 if all vectors are equal
    return places * np.where(largest < 0, -1, 1), spreads[:count] ** 2 / variance


def _kind_of(label: str) -> str:
    first = label.lstrip("".join(VISIBLE.values()))[:1]
    for is_of_kind, kind in ((str.islower, "lower case"), (str.isupper, "upper case"), (str.isdigit, "digits")):
        if is_of_kind(first):
            return kind
    return "other"
