"""A picture of the loss curves of a training run."""

import os
from typing import TYPE_CHECKING, Any

from numpygpt.errors import InputError
from numpygpt.pictures.figure import TRAINING_COLOR, VALIDATION_COLOR, Series, new_figure, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = Any  # matplotlib is imported where a figure is drawn


def plot_losses(
    epochs_seen: Series,
    tokens_seen: Series,
    train_losses: Series,
    val_losses: Series,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """The loss curves of a training run over two x axes: epochs below, tokens seen above.

    The four sequences have one entry for each evaluation. The losses are in nats a token. If a `path` is given,
    the figure is also written there, as PNG.

    Raises InputError for sequences that are empty or of unequal lengths, for a path that cannot be written,
    and if matplotlib is not installed or cannot start.
    """
    lengths = [len(series) for series in (epochs_seen, tokens_seen, train_losses, val_losses)]
    if len(set(lengths)) > 1 or lengths[0] == 0:
        raise InputError(
            f"epochs_seen, tokens_seen, train_losses and val_losses have lengths {lengths}; "
            f"expected one entry each for every evaluation, and at least one evaluation"
        )
    figure, axes = new_figure()
    marker = "o" if lengths[0] == 1 else None  # a line through one point cannot be seen
    axes.plot(epochs_seen, train_losses, color=TRAINING_COLOR, marker=marker, label="Training loss")
    axes.plot(epochs_seen, val_losses, "-.", color=VALIDATION_COLOR, marker=marker, label="Validation loss")
    axes.set(xlabel="Epochs", ylabel="Loss (nats per token)")
    axes.legend(frameon=False)
    _add_tokens_axis(axes, tokens_seen, train_losses)
    if path is not None:
        write_png(figure, path)
    return figure


def _add_tokens_axis(axes: Axes, tokens_seen: Series, train_losses: Series) -> None:
    """Add a second x axis above. An invisible line over `tokens_seen` gives it its range, as in the book."""
    from matplotlib.ticker import EngFormatter

    tokens_axes = axes.twiny()
    tokens_axes.plot(tokens_seen, train_losses, alpha=0)
    tokens_axes.spines["right"].set_visible(False)
    tokens_axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    tokens_axes.set_xlabel("Tokens seen")
