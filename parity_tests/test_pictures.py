"""Pictures of a trained model: attention maps and word vectors, drawn from code and by the command line."""

import os
import re
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from numpygpt.data.tokenizer import get_tokenizer, text_to_token_ids, token_ids_to_text
from numpygpt.decoding.beams import beam_search
from numpygpt.errors import InputError
from numpygpt.formats import load_model
from numpygpt.formats.checkpoint import write_checkpoint
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_section
from numpygpt.pictures.attention import plot_attention
from numpygpt.pictures.figure import token_label
from numpygpt.pictures.vectors import plot_word_vectors, principal_components
from numpygpt.sections import Section
from numpygpt.training.book import perplexity
from numpygpt.training.options import Options
from numpygpt.training.run import Evaluation
from parity_tests.command import python, run
from parity_tests.properties import CONFIG, agree

PNG = b"\x89PNG"
TRAINED = replace(CONFIG, vocab_size=256)
H, T = CONFIG.n_heads, 5
LABELS = ["The", "␣cat", "␣$x$", "↵", "\\xe2"]


def attention_weights(seed=0, heads=H, tokens=T):
    weights = np.tril(np.random.default_rng(seed).random((heads, tokens, tokens)))
    return weights / weights.sum(axis=-1, keepdims=True)


def panels(figure):
    """The axes that have an image, except the color bar."""
    return [axes for axes in figure.axes if axes.images]


def tick_labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint with a history and an untrained model of bytes, large enough to differ from token to token."""
    history = [asdict(Evaluation(step, 0.5, 10, 5.0, loss)) for step, loss in ((0, 5.5), (7, 2.0))]
    run_section = Section({"options": Options().to_dict(), "step": 7, "history": history}, {})
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder, {"model": model_section(GPTModel(TRAINED), "bytes"), "run": run_section})
    return folder


# Attention maps


def test_each_head_has_a_panel_with_its_weights():
    weights = {layer: attention_weights(layer) for layer in (1, 4)}
    figure = plot_attention(weights, LABELS)
    assert [axes.get_title() for axes in panels(figure)] == [f"layer {i}, head {h}" for i in (1, 4) for h in range(H)]
    for axes, expected in zip(panels(figure), np.concatenate([*weights.values()]), strict=True):
        (image,) = axes.images
        assert np.array_equal(np.ma.getmaskarray(image.get_array()), np.triu(np.ones((T, T), dtype=bool), k=1))
        assert np.array_equal(image.get_array().filled(0), expected)
        assert image.get_clim() == (0, 1)  # all panels have one scale
        assert image.origin == "upper"  # the row of the first token is at the top


def test_tokens_stand_beside_the_left_and_below_the_lowest_panels():
    figure = plot_attention({layer: attention_weights(layer) for layer in (0, 1)}, LABELS)
    beside = [tick_labels(axes.yaxis) for axes in panels(figure)]
    below = [tick_labels(axes.xaxis) for axes in panels(figure)]
    assert beside == [LABELS, [], []] * 2
    assert below == [[]] * H + [LABELS] * H


def test_the_heads_of_one_layer_fill_rows_of_four_and_each_column_ends_in_labels():
    figure = plot_attention({0: attention_weights(heads=6)}, LABELS)
    rows = [axes.get_subplotspec().rowspan.start for axes in panels(figure)]
    assert rows == [0, 0, 0, 0, 1, 1]
    assert [bool(tick_labels(axes.xaxis)) for axes in panels(figure)] == [False, False, True, True, True, True]


def test_a_long_text_is_labeled_with_as_many_tokens_as_have_room():
    labels = [f"word{t}" for t in range(200)]
    figure = plot_attention({0: attention_weights(heads=4, tokens=200)}, labels)
    shown = tick_labels(panels(figure)[0].yaxis)
    step = labels.index(shown[1])
    assert step > 1
    assert shown == labels[::step]
    assert max(figure.get_size_inches()) < 30


def test_dollar_signs_are_no_mathematics(tmp_path):
    plot_attention({0: attention_weights()}, ["$\\bad$"] * T, tmp_path / "attention.png")
    plot_word_vectors(np.eye(3), ["$\\bad$"] * 3, tmp_path / "vectors.png")
    assert (tmp_path / "attention.png").read_bytes().startswith(PNG)
    assert (tmp_path / "vectors.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(("weights", "labels"), [({}, LABELS), ({0: attention_weights()}, LABELS[:-1]), ({}, [])])
def test_weights_that_are_not_of_the_labels_are_refused(weights, labels):
    with pytest.raises(InputError, match=f"there are {len(labels)} labels and attention weights of shapes"):
        plot_attention(weights, labels)


# Word vectors

matrices = arrays.arrays(
    np.float64, st.tuples(st.integers(2, 6), st.integers(2, 5)), elements=st.floats(-9, 9, width=16)
)


@given(matrices)
def test_principal_components_are_eigenvectors_of_the_covariance(vectors):
    places, shares = principal_components(vectors)
    centered = vectors - vectors.mean(axis=0)
    variances = np.linalg.eigvalsh(centered.T @ centered)[::-1]
    agree(np.append((places**2).sum(axis=0), variances[2:]), variances, "variances")
    agree(np.append(shares * variances.sum(), 1.0), np.append(variances[:2], 1.0), "shares")
    size = np.abs(centered).sum()  # what should be 0 is judged relative to this
    agree(np.append(places[:, 0] @ places[:, 1], size**2), np.append(0.0, size**2), "at right angles")
    assert (places.max(axis=0) >= -places.min(axis=0)).all()


def test_points_of_a_plane_keep_their_distances():
    rng = np.random.default_rng(3)
    plane = rng.standard_normal((7, 2)) * (5, 1)
    turned = plane @ np.linalg.qr(rng.standard_normal((4, 4)))[0][:2] + rng.standard_normal(4)
    places, shares = principal_components(turned)

    def distances(points):
        return np.sqrt(((points[:, None] - points) ** 2).sum(axis=-1))

    agree(distances(places), distances(plane), "distances")
    agree(shares.sum(), 1.0, "shares")
    assert shares[0] > shares[1]


def test_equal_vectors_are_one_point():
    places, shares = principal_components(np.ones((3, 4), np.float32))
    assert not places.any()
    assert not shares.any()


def test_each_token_is_written_at_its_place():
    vectors = np.random.default_rng(4).standard_normal((5, 3))
    figure = plot_word_vectors(vectors, LABELS)
    (axes,) = figure.axes
    places, shares = principal_components(vectors)
    assert [text.get_text() for text in axes.texts] == LABELS
    assert np.array_equal([text.get_position() for text in axes.texts], places)
    assert axes.get_xlabel() == f"first principal component ({shares[0]:.0%} of the variance)"
    kinds = [text.get_text() for text in figure.legends[0].get_texts()]
    assert kinds == ["upper case", "lower case", "other"]
    colors = [text.get_color() for text in axes.texts]
    assert colors[2] == colors[3] == colors[4]
    assert len(set(colors)) == len(kinds)


@pytest.mark.parametrize(("shape", "labels"), [((1, 4), 1), ((4, 1), 4), ((3, 3), 2)])
def test_vectors_without_a_plane_and_other_labels_are_refused(shape, labels):
    with pytest.raises(InputError, match=f"there are {labels} labels and vectors of shape"):
        plot_word_vectors(np.ones(shape), ["a"] * labels)


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (b" the", "␣the"),
        (b"\n\t", "↵⇥"),
        ("é".encode(), "é"),
        (b"\xe2\x82", r"\xe2\x82"),
        (b"\x00\x7f", r"\x00\x7f"),
        ("\u2028".encode(), r"\u2028"),
        (b"$x$", "$x$"),
    ],
)
def test_a_label_shows_what_cannot_be_seen(token, label):
    assert token_label(token) == label


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_drawn(value):
    vectors, weights = np.ones((3, 4)), attention_weights()
    vectors[1, 2] = weights[0, 3, 1] = value
    with pytest.raises(InputError, match="the word vectors are not all finite, so they cannot be drawn: the model is"):
        plot_word_vectors(vectors, LABELS[:3])
    with pytest.raises(InputError, match="the attention weights are not all finite, so they cannot be drawn"):
        plot_attention({0: attention_weights(), 1: weights}, LABELS)


# Perplexity


def test_perplexity_is_the_number_of_equally_likely_choices():
    assert perplexity(0.0) == 1.0
    for choices in (256, 48725.8203):
        agree(np.float64(perplexity(np.log(choices))), np.float64(choices), f"of {choices}")
    assert perplexity(1e4) == float("inf")
    assert np.isnan(perplexity(float("nan")))


def test_info_gives_the_last_perplexity(checkpoint, capsys, tmp_path):
    assert run("info", "--checkpoint", checkpoint) == 0
    assert "\nvalidation loss 2.000 nats a token, perplexity 7.39 (step 7)\n" in capsys.readouterr().out
    write_checkpoint(tmp_path, {"model": model_section(GPTModel(TRAINED), "bytes")})
    assert run("info", "--checkpoint", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "tokenizer bytes, a model without a training run\n" in printed
    assert "perplexity" not in printed


# The command line


def test_attention_draws_every_layer_or_one(checkpoint, tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr("numpygpt.commands.attention.plot_attention", lambda *arguments: drawn.append(arguments))
    arguments = ("attention", "--checkpoint", checkpoint, "--prompt", "a $b")
    assert run(*arguments) == 0
    assert run(*arguments, "--layer", 1, "--out", tmp_path / "one.png") == 0
    assert capsys.readouterr().out == f"wrote {checkpoint / 'attention.png'}\nwrote {tmp_path / 'one.png'}\n"
    seen = {}
    load_model(checkpoint).forward(np.array([list(b"a $b")]), watch=seen.__setitem__)
    (every, labels, _), (one, _, path) = drawn
    assert labels == ["a", "␣", "$", "b"]
    assert (list(every), list(one), path) == ([0, 1], [1], tmp_path / "one.png")
    assert np.array_equal(every[1], one[1])
    assert np.array_equal(one[1], seen["trf_blocks.1.att.attn_weights"][0])


def test_attention_writes_a_picture(checkpoint, tmp_path, capsys):
    path = tmp_path / "attention.png"
    assert run("attention", "--checkpoint", checkpoint, "--prompt", "cat", "--layer", 0, "--out", path) == 0
    assert path.read_bytes().startswith(PNG)
    assert capsys.readouterr().out == f"wrote {path}\n"


def test_embeddings_writes_a_picture(checkpoint, tmp_path, capsys):
    path = tmp_path / "vectors.png"
    assert run("embeddings", "--checkpoint", checkpoint, "--tokens", "a", " ", "7", "--out", path) == 0
    assert path.read_bytes().startswith(PNG)
    assert capsys.readouterr().out == f"wrote {path}\n"


def test_embeddings_draws_the_models_own_vectors(checkpoint, monkeypatch):
    drawn = []
    monkeypatch.setattr("numpygpt.commands.embeddings.plot_word_vectors", lambda *arguments: drawn.append(arguments))
    assert run("embeddings", "--checkpoint", checkpoint) == 0
    assert run("embeddings", "--checkpoint", checkpoint, "--tokens", "z", " ", "z") == 0
    weights = load_model(checkpoint).state_dict()["tok_emb.weight"]
    (vectors, labels, path), (chosen, chosen_labels, _) = drawn
    assert labels == [chr(code) for code in range(33, 127)]
    assert np.array_equal(vectors, weights[33:127])
    assert path == checkpoint / "embeddings.png"
    assert chosen_labels == ["z", "␣", "z"]
    assert np.array_equal(chosen, weights[[122, 32, 122]])


def test_generate_searches_with_beams(checkpoint, capsys):
    arguments = ("generate", "--checkpoint", checkpoint, "--prompt", "The", "--max-new-tokens", 4, "--num-beams", 3)
    assert run(*arguments) == 0
    tokenizer = get_tokenizer("bytes")
    prompt = text_to_token_ids("The", tokenizer)
    ids = beam_search(load_model(checkpoint), prompt, 4, CONFIG.context_length, 3)
    assert capsys.readouterr().out == token_ids_to_text(ids, tokenizer) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("attention", "--prompt", "a", "--layer", 2), "--layer is 2; the model has layers 0 to 1"),
        (("attention", "--prompt", "a", "--layer", -1), "--layer is -1; the model has layers 0 to 1"),
        (("attention", "--prompt", ""), "the prompt is empty"),
        (("attention", "--prompt", "nine bytes"), "a sequence of 10 tokens is longer than context_length 8"),
        (("attention", "--prompt", "a", "--out", "/no/such/a.png"), "cannot write /no/such/a.png: there is no"),
        (("attention", "--prompt", "a", "--out", "/dev/null"), "cannot write /dev/null: it is a pipe or a device"),
        (("embeddings", "--out", "/dev/null"), "cannot write /dev/null: it is a pipe or a device; name a regular file"),
        (("embeddings", "--out", "x" * 300), f"cannot write {'x' * 300}: File name too long"),
        (("embeddings", "--out", "."), "cannot write .: it is a folder; name a file in it"),
        (("embeddings", "--tokens", "a", "bc"), "'bc' is 2 tokens of the tokenizer bytes; expected one"),
        (("embeddings", "--tokens", "a"), "at least two vectors"),
        (("generate", "--prompt", "a", "--num-beams", 0), "num_beams is 0; expected at least 1"),
        (("generate", "--prompt", "a", "--num-beams", 2, "--top-k", 3, "--seed", 1), "leave out --top-k, --seed"),
        (("generate", "--prompt", "a", "--num-beams", 2, "--temperature", 0.8), "leave out --temperature"),
        (("generate", "--prompt", "a", "--num-beams", 2, "--num-samples", 2), "leave out --num-samples"),
    ],
)
def test_bad_input_gets_one_line(checkpoint, capsys, arguments, message):
    command, *options = arguments
    assert run(command, "--checkpoint", checkpoint, *options) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")


@pytest.mark.parametrize("command", ["attention", "embeddings"])
def test_a_picture_that_cannot_be_written_is_told_before_anything_is_computed(checkpoint, capsys, monkeypatch, command):
    monkeypatch.setattr(f"numpygpt.commands.{command}.model_of", None)  # cannot be called
    prompt = ("--prompt", "a") if command == "attention" else ()
    assert run(command, "--checkpoint", checkpoint, *prompt, "--out", "/no/such/a.png") == 2
    assert "there is no folder /no/such" in capsys.readouterr().err


def test_a_bad_mplbackend_is_told_in_one_line(checkpoint, tmp_path):
    """This runs in a process of its own, because matplotlib reads the variable only once."""
    arguments = ("embeddings", "--checkpoint", checkpoint, "--out", tmp_path / "a.png")
    done = python("-m", "numpygpt", *arguments, env={**os.environ, "MPLBACKEND": "bogus"})
    assert (done.returncode, done.stdout) == (2, "")
    expected = r"numpygpt: error: matplotlib refuses the environment variable MPLBACKEND, unset it: .*'bogus'.*\n"
    assert re.fullmatch(expected, done.stderr)
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("options", [("attention", "--prompt", "a"), ("embeddings", "--tokens", "a", "b")])
def test_without_matplotlib_the_install_line_is_given(checkpoint, capsys, monkeypatch, options):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(options[0], "--checkpoint", checkpoint, *options[1:]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
