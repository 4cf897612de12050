"""Pictures of a training run and of its model, on figures of their own: no window opens, no pyplot state is touched."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from numpygpt.errors import InputError
from numpygpt.shapes import Array, Inexact

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


def plot_losses(
    epochs_seen: Series,
    tokens_seen: Series,
    train_losses: Series,
    val_losses: Series,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """The loss curves of a training run over two x axes: epochs below, tokens seen above.

    The four sequences hold one entry an evaluation; losses in nats a token. Where a `path` is given, the
    figure is also written there, as PNG.

    Raises InputError for sequences that are empty or of unequal lengths, for a path that cannot be written,
    and where matplotlib is not installed.
    """
    lengths = [len(series) for series in (epochs_seen, tokens_seen, train_losses, val_losses)]
    if len(set(lengths)) > 1 or lengths[0] == 0:
        raise InputError(
            f"epochs_seen, tokens_seen, train_losses and val_losses have lengths {lengths}; "
            f"expected one entry each for every evaluation, and at least one evaluation"
        )
    figure, axes = _new_figure()
    marker = "o" if lengths[0] == 1 else None  # a line through one point cannot be seen
    axes.plot(epochs_seen, train_losses, color=TRAINING_COLOR, marker=marker, label="Training loss")
    axes.plot(epochs_seen, val_losses, "-.", color=VALIDATION_COLOR, marker=marker, label="Validation loss")
    axes.set(xlabel="Epochs", ylabel="Loss (nats per token)")
    axes.legend(frameon=False)
    _add_tokens_axis(axes, tokens_seen, train_losses)
    if path is not None:
        _write_png(figure, path)
    return figure


def plot_temperatures(
    words: Sequence[str],
    probabilities: Mapping[int | float, Series],
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Bars of the words' probabilities at several temperatures, side by side at each word (the book's figure 5.14).

    probabilities   {temperature: one probability a word}, at most as many temperatures as PALETTE has colors

    Where a `path` is given, the figure is also written there, as PNG. Raises InputError for a series that is not as
    long as `words`, and as `plot_losses` for the path and for matplotlib.
    """
    lengths = [len(series) for series in probabilities.values()]
    if not words or not 0 < len(lengths) <= len(PALETTE) or set(lengths) != {len(words)}:
        raise InputError(
            f"there are {len(words)} words and series of {lengths} probabilities; "
            f"expected 1 to {len(PALETTE)} series with one probability for each word"
        )
    figure, axes = _new_figure()
    width = 0.8 / len(probabilities)
    for i, (temperature, series) in enumerate(probabilities.items()):
        left_edges = [word - 0.4 + i * width for word in range(len(words))]
        axes.bar(left_edges, series, width, align="edge", color=PALETTE[i], label=f"Temperature = {temperature:g}")
    axes.set_xticks(range(len(words)), words, rotation=45, ha="right")
    axes.set_ylabel("Probability")
    axes.set_axisbelow(True)  # the grid behind the bars
    axes.legend(frameon=False)
    if path is not None:
        _write_png(figure, path)
    return figure


def plot_attention(
    attn_weights: Mapping[int, Inexact[Array, "H T T"]],
    labels: Sequence[str],
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Attention maps of a sentence, one panel a head: in each row, how much a token reads of itself and those before.

    attn_weights   {layer: its weights, each row summing to 1}
    labels         the T tokens, as `token_label` writes them

    Where a `path` is given, the figure is also written there, as PNG. Raises InputError for no layers, for weights that
    are not (heads, T, T), and as `plot_losses` for the path and for matplotlib.
    """
    T = len(labels)
    panels = [(layer, head, weights) for layer, heads in attn_weights.items() for head, weights in enumerate(heads)]
    if not T or not panels or any(weights.shape != (T, T) for _, _, weights in panels):
        shapes = [weights.shape for weights in attn_weights.values()]
        raise InputError(
            f"there are {T} labels and attention weights of shapes {shapes}; "
            f"expected at least one label, and layers of shape (heads, {T}, {T})"
        )
    n_heads = len(panels) // len(attn_weights)
    columns = n_heads if len(attn_weights) > 1 else min(n_heads, 4)
    rows = math.ceil(len(panels) / columns)
    side = min(max(1.5, 0.17 * T), 24 / columns)  # inches
    figure = _blank_figure(columns * side + 2, rows * (side + 0.3) + 1)
    from matplotlib.colors import PowerNorm

    scale = PowerNorm(0.5, vmin=0, vmax=1)  # square roots: among many tokens the weights are small
    named = range(0, T, math.ceil(0.1 * T / side))  # as many tokens as have room for a line of text each
    rotation = 90 if max(map(len, labels)) > 2 else 0
    later = np.triu(np.ones((T, T), dtype=bool), k=1)
    for place, (layer, head, weights) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        image = axes.imshow(np.ma.masked_where(later, weights), cmap="Blues", norm=scale)
        axes.set_facecolor("0.92")  # what a token cannot read
        axes.set_title(f"layer {layer}, head {head}", fontsize=8)
        below = named if place + columns >= len(panels) else []
        beside = named if place % columns == 0 else []
        axes.set_xticks(below, [labels[t] for t in below], rotation=rotation, fontsize=7, parse_math=False)
        axes.set_yticks(beside, [labels[t] for t in beside], fontsize=7, parse_math=False)
    figure.colorbar(image, ax=figure.axes, label="attention weight", shrink=min(1, 3 / rows / side), aspect=25)
    figure.supxlabel("the token that is read", fontsize=9)
    figure.supylabel("the token that reads", fontsize=9)
    if path is not None:
        _write_png(figure, path)
    return figure


def plot_word_vectors(
    vectors: Inexact[Array, "N D"], labels: Sequence[str], path: str | os.PathLike[str] | None = None
) -> Figure:
    """The tokens as text at their word vectors' places in the plane where these are farthest apart.

    vectors   rows of a token embedding
    labels    the N tokens, as `token_label` writes them

    Where a `path` is given, the figure is also written there, as PNG. Raises InputError for fewer than two vectors or
    dimensions, for labels that are not as many, and as `plot_losses` for the path and for matplotlib.
    """
    if min(vectors.shape) < 2 or len(labels) != len(vectors):
        raise InputError(
            f"there are {len(labels)} labels and vectors of shape {vectors.shape}; "
            f"expected as many labels as vectors, and at least two vectors of two dimensions"
        )
    places, shares = principal_components(vectors)
    figure = _blank_figure(8, 7)
    axes = figure.add_subplot()
    axes.plot(places[:, 0], places[:, 1], alpha=0)  # text alone does not stretch the axes
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
        _write_png(figure, path)
    return figure


def principal_components(
    vectors: Inexact[Array, "N D"], count: int = 2
) -> tuple[Inexact[Array, "N {count}"], Inexact[Array, "{count}"]]:
    """The vectors' coordinates along the `count` directions of most variance, and each one's share of all variance.

    The directions are the right singular vectors of the centered vectors (Jolliffe 2002, "Principal Component
    Analysis", section 3.5). The coordinate largest in size is made positive, for a direction has no sign of its own.
    """
    centered = vectors.astype(np.float64) - vectors.mean(axis=0)
    left, spreads, _ = np.linalg.svd(centered, full_matrices=False)
    places = left[:, :count] * spreads[:count]
    largest = np.take_along_axis(places, np.abs(places).argmax(axis=0, keepdims=True), axis=0)
    variance = (spreads**2).sum() or 1.0  # 0 where all vectors are alike
    return places * np.where(largest < 0, -1, 1), spreads[:count] ** 2 / variance


def _kind_of(label: str) -> str:
    first = label.lstrip("".join(VISIBLE.values()))[:1]
    for is_of_kind, kind in ((str.islower, "lower case"), (str.isupper, "upper case"), (str.isdigit, "digits")):
        if is_of_kind(first):
            return kind
    return "other"


def token_label(token: bytes) -> str:
    """A token as a picture can show it: white space made visible, and bytes that are no text in hexadecimal."""
    text = token.decode(errors="backslashreplace").translate(VISIBLE)
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _new_figure() -> tuple[Figure, Axes]:
    figure = _blank_figure(7, 4.2)
    axes = figure.add_subplot()
    axes.spines["right"].set_visible(False)
    axes.grid(visible=True, color="0.9")
    return figure, axes


def _blank_figure(width: int | float, height: int | float) -> Figure:
    try:
        from matplotlib.figure import Figure as MatplotlibFigure
    except ImportError as error:
        raise InputError("matplotlib is not installed, and plots need it: pip install matplotlib") from error
    return MatplotlibFigure(figsize=(width, height), layout="constrained")


def _add_tokens_axis(axes: Axes, tokens_seen: Series, train_losses: Series) -> None:
    """A second x axis above: an invisible line over `tokens_seen` gives it its range, as in the book."""
    from matplotlib.ticker import EngFormatter

    tokens_axes = axes.twiny()
    tokens_axes.plot(tokens_seen, train_losses, alpha=0)
    tokens_axes.spines["right"].set_visible(False)
    tokens_axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    tokens_axes.set_xlabel("Tokens seen")


def _write_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise InputError(f"cannot write the picture {os.fspath(path)}: {error.strerror}") from error
