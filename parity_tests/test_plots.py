"""Plots: the loss curves over epochs and tokens."""

import sys

import numpy as np
import pytest

from numpygpt.errors import InputError
from numpygpt.pictures.losses import plot_losses
from parity_tests.command import files

EPOCHS = [0.0, 0.5, 1.0, 1.5]
TOKENS = [512, 10_752, 20_992, 31_232]
TRAIN = [9.8, 6.6, 3.1, 0.4]
VALIDATION = [9.9, 7.0, 6.4, 6.5]


def test_both_curves_stand_over_epochs_and_tokens():
    figure = plot_losses(EPOCHS, TOKENS, TRAIN, VALIDATION)
    epochs_axes, tokens_axes = figure.axes
    curves = {line.get_label(): np.transpose(line.get_data()).tolist() for line in epochs_axes.lines}
    assert curves == {
        "Training loss": [[*point] for point in zip(EPOCHS, TRAIN, strict=True)],
        "Validation loss": [[*point] for point in zip(EPOCHS, VALIDATION, strict=True)],
    }
    assert list(tokens_axes.lines[0].get_xdata()) == TOKENS
    assert (epochs_axes.get_xlabel(), tokens_axes.get_xlabel()) == ("Epochs", "Tokens seen")
    assert tokens_axes.xaxis.get_label_position() == "top"


def test_the_same_point_of_a_run_lies_at_the_same_place_on_both_axes():
    figure = plot_losses(EPOCHS, TOKENS, TRAIN, VALIDATION)
    figure.draw_without_rendering()  # lays out the axes
    epochs_axes, tokens_axes = figure.axes
    for epochs, tokens in ((EPOCHS[0], TOKENS[0]), (EPOCHS[-1], TOKENS[-1])):
        below = epochs_axes.transData.transform((epochs, 0))[0]
        above = tokens_axes.transData.transform((tokens, 0))[0]
        assert round(below) == round(above)  # pixels


def test_a_png_is_written_without_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    path = tmp_path / "losses.png"
    plot_losses(EPOCHS, TOKENS, TRAIN, VALIDATION, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_one_evaluation_is_drawn_as_points():
    figure = plot_losses([0.0], [512], [9.8], [9.9])
    assert [line.get_marker() for line in figure.axes[0].lines] == ["o", "o"]


@pytest.mark.parametrize("lengths", [(3, 4, 4, 4), (4, 4, 4, 2), (0, 0, 0, 0)])
def test_unequal_or_empty_series_are_refused(lengths):
    series = [values[:n] for values, n in zip((EPOCHS, TOKENS, TRAIN, VALIDATION), lengths, strict=True)]
    with pytest.raises(InputError, match="have lengths"):
        plot_losses(*series)


def test_an_unwritable_path_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*missing/losses\.png: there is no folder .*missing"):
        plot_losses(EPOCHS, TOKENS, TRAIN, VALIDATION, tmp_path / "missing" / "losses.png")


def test_a_picture_replaces_an_older_one_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "losses.png"
    path.write_bytes(b"older")

    def full(figure, file, **options):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("matplotlib.figure.Figure.savefig", full)
        with pytest.raises(InputError, match=r"cannot write the picture .*losses\.png: No space left on device"):
            plot_losses(EPOCHS, TOKENS, TRAIN, VALIDATION, path)
    assert files(tmp_path) == {"losses.png": b"older"}
    plot_losses(EPOCHS, TOKENS, TRAIN, VALIDATION, path)
    assert list(files(tmp_path)) == ["losses.png"]
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_install_line_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        plot_losses(EPOCHS, TOKENS, TRAIN, VALIDATION)
