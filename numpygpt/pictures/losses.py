"""Pictures of the curves of a training run: losses, accuracies."""

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
    *,
    unit: str = "nats per token",
) -> Figure:
    """The loss curves of a training run over two x axes: epochs below, tokens seen above.

    The four sequences have one entry for each evaluation. `unit` is what the losses are in. If a `path` is given,
    the figure is also written there, as PNG.

    Raises InputError for sequences that are empty or of unequal lengths, for a path that cannot be written,
    and if matplotlib is not installed or cannot start.
    """
    _refuse_unequal(epochs_seen=epochs_seen, tokens_seen=tokens_seen, train_losses=train_losses, val_losses=val_losses)
    return _over_two_axes(
        (epochs_seen, tokens_seen, "Tokens seen"), train_losses, val_losses, ("loss", f"Loss ({unit})"), path
    )


def plot_values(
    epochs_seen: Series,
    examples_seen: Series,
    train_values: Series,
    val_values: Series,
    label: str = "loss",
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """The curves of a classifier's training over two x axes: epochs below, examples seen above.

    This is the book's function of chapter 6. `label` is what the values are: "loss" or "accuracy". The rest is as
    `plot_losses` has it; the book's function writes a PDF of that name and opens a window.
    """
    _refuse_unequal(
        epochs_seen=epochs_seen, examples_seen=examples_seen, train_values=train_values, val_values=val_values
    )
    return _over_two_axes(
        (epochs_seen, examples_seen, "Examples seen"), train_values, val_values, (label, label.capitalize()), path
    )


def _over_two_axes(
    over: tuple[Series, Series, str],
    train_values: Series,
    val_values: Series,
    words: tuple[str, str],
    path: str | os.PathLike[str] | None,
) -> Figure:
    """The two curves.

    over    the epochs; what was seen until then; the label of the axis above
    words   what the legend calls the values, and the label of their axis
    """
    epochs_seen, seen, seen_label = over
    name, values_label = words
    figure, axes = new_figure()
    marker = "o" if len(epochs_seen) == 1 else None  # a line through one point cannot be seen
    axes.plot(epochs_seen, train_values, color=TRAINING_COLOR, marker=marker, label=f"Training {name}")
    axes.plot(epochs_seen, val_values, "-.", color=VALIDATION_COLOR, marker=marker, label=f"Validation {name}")
    axes.set(xlabel="Epochs", ylabel=values_label)
    axes.legend(frameon=False)
    _add_axis_above(axes, seen, train_values, seen_label)
    if path is not None:
        write_png(figure, path)
    return figure


def _refuse_unequal(**series: Series) -> None:
    """InputError unless all have the same number of entries, and at least one."""
    lengths = [len(values) for values in series.values()]
    if len(set(lengths)) > 1 or lengths[0] == 0:
        *names, last = series
        raise InputError(
            f"{', '.join(names)} and {last} have lengths {lengths}; "
            f"expected one entry each for every evaluation, and at least one evaluation"
        )


def _add_axis_above(axes: Axes, seen: Series, values: Series, label: str) -> None:
    """Add a second x axis above. An invisible line over what was seen gives it its range, as in the book."""
    from matplotlib.ticker import EngFormatter

    above = axes.twiny()
    above.plot(seen, values, alpha=0)
    above.spines["right"].set_visible(False)
    above.xaxis.set_major_formatter(EngFormatter(sep=""))
    above.set_xlabel(label)
