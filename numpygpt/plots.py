"""Pictures of a training run, on figures of their own: no window opens, and no pyplot state is touched."""

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

#: Blue and vermilion of Okabe & Ito's palette, which color-blind readers can tell apart.
TRAINING_COLOR = "#0072B2"
VALIDATION_COLOR = "#D55E00"


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


def _new_figure() -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure as MatplotlibFigure
    except ImportError as error:
        raise InputError("matplotlib is not installed, and plots need it: pip install matplotlib") from error
    figure = MatplotlibFigure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.spines["right"].set_visible(False)
    axes.grid(visible=True, color="0.9")
    return figure, axes


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
