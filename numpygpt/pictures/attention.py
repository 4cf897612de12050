"""Pictures of what each attention head reads."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.pictures.figure import blank_figure, check_finite, write_png
from numpygpt.shapes import Array, Inexact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = Any  # matplotlib is imported where a figure is drawn


def plot_attention(
    attn_weights: Mapping[int, Inexact[Array, "H T T"]],
    labels: Sequence[str],
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """The attention maps of a text, in one panel for each head.

    A row shows how much a token reads of itself and of each token before it.

    attn_weights   {layer: its weights (H, T, T)}; each row sums to 1
    labels         the T tokens, as `token_label` writes them

    If a `path` is given, the figure is also written there, as PNG. Raises InputError if there are no layers, for
    weights that are not (heads, T, T) or not finite, and as `plot_losses` does for the path and for matplotlib.
    """
    T = len(labels)
    panels = [(layer, head, weights) for layer, heads in attn_weights.items() for head, weights in enumerate(heads)]
    if not T or not panels or any(weights.shape != (T, T) for _, _, weights in panels):
        shapes = [weights.shape for weights in attn_weights.values()]
        raise InputError(
            f"there are {T} labels and attention weights of shapes {shapes}; "
            f"expected at least one label, and layers of shape (heads, {T}, {T})"
        )
    for weights in attn_weights.values():
        check_finite(weights, "the attention weights")
    n_heads = len(panels) // len(attn_weights)
    columns = n_heads if len(attn_weights) > 1 else min(n_heads, 4)
    rows = math.ceil(len(panels) / columns)
    side = min(max(1.5, 0.17 * T), 24 / columns)  # inches
    figure = blank_figure(columns * side + 2, rows * (side + 0.3) + 1)
    from matplotlib.colors import PowerNorm

    scale = PowerNorm(0.5, vmin=0, vmax=1)  # colors go by square roots, because the weights of many tokens are small
    named = range(0, T, math.ceil(0.1 * T / side))  # only as many tokens as have room for a line of text
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
        write_png(figure, path)
    return figure
