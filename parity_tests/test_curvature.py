"""Hessian-vector products by complex step over the backward, and the eigenvalues that Lanczos makes of them."""

import re

import numpy as np
import pytest
import torch

from numpygpt.checks.curvature import hessian_vector_product, lanczos
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import write_checkpoint
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_section
from parity_tests.command import python, run, write_text
from parity_tests.properties import CONFIG, INPUTS, TARGETS, TIED, agree, model_of
from parity_tests.small_models import assert_same_gradients
from parity_tests.tolerances import FLOAT64_NORMWISE
from torchgpt.bridge import to_torch

TINY = GPTConfig(vocab_size=5, context_length=3, emb_dim=4, n_heads=2, n_layers=1, drop_rate=0.0, qkv_bias=False)
SIZES = ("--vocab-size", 5, "--context-length", 3, "--emb-dim", 4, "--n-heads", 2, "--n-layers", 1)


def graph_of_gradients(model, inputs, targets):
    """The parameters of PyTorch's model, and the gradients of its loss, which can be differentiated again."""
    twin = to_torch(model, copy=True)
    twin.eval()
    logits = twin(torch.from_numpy(inputs))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    parameters = dict(twin.named_parameters())
    return parameters, torch.autograd.grad(loss, list(parameters.values()), create_graph=True)


def double_backward(model, inputs, targets, vector):
    """The Hessian-vector product of PyTorch: the gradient of <gradient, v>."""
    parameters, gradients = graph_of_gradients(model, inputs, targets)
    along = sum((g * torch.from_numpy(vector[name])).sum() for name, g in zip(parameters, gradients, strict=True))
    products = torch.autograd.grad(along, list(parameters.values()), materialize_grads=True)
    return {name: product.numpy() for name, product in zip(parameters, products, strict=True)}


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["plain", "tied"])
def test_a_product_equals_that_of_pytorch_double_backward(config):
    model, rng = model_of(config), np.random.default_rng(3)
    vector = {name: rng.standard_normal(array.shape) for name, array in model.named_parameters().items()}
    ours = hessian_vector_product(model, INPUTS, TARGETS, vector)
    assert_same_gradients(ours, double_backward(model, INPUTS, TARGETS, vector))


def test_the_model_stays_as_it_was():
    model = model_of()
    before = {name: array.copy() for name, array in model.named_parameters().items()}
    hessian_vector_product(model, INPUTS, TARGETS, before)
    assert all(np.array_equal(before[name], array) for name, array in model.named_parameters().items())


# Lanczos


def symmetric(n, seed=0):
    matrix = np.random.default_rng(seed).standard_normal((n, n))
    return matrix + matrix.T


def test_all_iterations_give_all_eigenvalues_and_few_give_the_outermost():
    matrix = symmetric(30)
    expected = np.linalg.eigvalsh(matrix)
    every = lanczos(lambda v: matrix @ v, 30, 30, np.random.default_rng(1))
    agree(every.values, expected, "eigenvalues")
    some = lanczos(lambda v: matrix @ v, 30, 15, np.random.default_rng(1))
    distances = np.abs(some.values[:, np.newaxis] - expected).min(axis=1)
    assert (distances <= some.errors + FLOAT64_NORMWISE * np.abs(expected).max()).all()
    assert some.errors[-1] < some.errors[len(some.errors) // 2], "the outermost come first"


def test_it_ends_early_if_nothing_is_left():
    told = []
    spectrum = lanczos(lambda v: 3 * v, 10, 7, np.random.default_rng(1), told.append)
    assert told == [1]
    agree(spectrum.values, np.array([3.0]), "the only eigenvalue")
    assert spectrum.errors == 0


def test_products_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="the curvature is not finite"):
        lanczos(lambda v: v * np.nan, 4, 2, np.random.default_rng(1))


# The command


def hessian(model, inputs, targets):
    """PyTorch's, row by row."""
    parameters, gradients = graph_of_gradients(model, inputs, targets)
    rows = [
        torch.autograd.grad(element, list(parameters.values()), retain_graph=True, materialize_grads=True)
        for gradient in gradients
        for element in gradient.flatten()
    ]
    return np.array([torch.cat([part.flatten() for part in row]).numpy() for row in rows])


def table(out):
    return {int(rank): float(value) for rank, value in re.findall(r"^ *(-?\d+) +(\S+) +\S+e[+-]\d+$", out, re.M)}


def test_the_command_prints_the_outermost_eigenvalues_of_a_new_model():
    """In a process of its own, without the checks of annotations."""
    options = ("--tokens", 2, "--batch-size", 2, "--iterations", 200, "--eigenvalues", 2, "--seed", 4)
    out = python("-m", "numpygpt", "curvature", *SIZES, *options).stdout
    ids = np.random.default_rng(4).integers(0, 5, (2, 3))
    model = GPTModel(TINY, 4, np.float64)
    expected = np.linalg.eigvalsh(hessian(model, ids[:, :-1], ids[:, 1:]))
    assert table(out) == {
        rank: float(f"{value:.6g}")
        for rank, value in {1: expected[-1], 2: expected[-2], -2: expected[1], -1: expected[0]}.items()
    }
    assert f"diverges above a learning rate of {2 / expected[-1]:.3g}\n" in out


def test_the_command_reads_a_checkpoint_and_a_text(capsys, tmp_path):
    config = GPTConfig(**{**TINY.to_dict(), "vocab_size": 256})
    write_checkpoint(tmp_path / "run", {"model": model_section(GPTModel(config, 1), "bytes")})
    text = write_text(tmp_path)
    options = ("--text", text, "--iterations", 3, "--eigenvalues", 1)
    assert run("curvature", "--checkpoint", tmp_path / "run", *options) == 0
    printed = capsys.readouterr()
    assert f"2 x 3 tokens of {text}" in printed.out
    assert set(table(printed.out)) == {1, -1}
    assert "3/3" in printed.err.replace("3.00", "3"), "a progress bar"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--iterations", 0), "--iterations is 0; expected 1 or more"),
        (("--eigenvalues", 0), "--eigenvalues is 0; expected 1 or more"),
        (("--seed", -1), "--seed is -1; expected 0 or more"),
        (("--text", "x.txt"), "--text has no meaning here; leave it out"),
        (("--tokens", 99), "a step on 2 x 99 tokens"),
        (("--checkpoint", "nowhere"), "nowhere"),
        (("--emb-dim", 10**7, "--n-heads", 2), "memory"),
    ],
)
def test_bad_input_is_told_in_a_line(capsys, options, message):
    assert run("curvature", *options) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(r"numpygpt: error: .*\n", printed.err), printed.err
    assert message in printed.err


def test_a_text_that_is_too_short_is_refused(capsys, tmp_path):
    config = GPTConfig(**{**TINY.to_dict(), "vocab_size": 256})
    write_checkpoint(tmp_path / "run", {"model": model_section(GPTModel(config, 1), "bytes")})
    text = write_text(tmp_path, "four")
    assert run("curvature", "--checkpoint", tmp_path / "run", "--text", text) == 2
    assert "has 4 tokens; 2 x 3 with their targets need 7" in capsys.readouterr().err
