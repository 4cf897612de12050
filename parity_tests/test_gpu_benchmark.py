"""scripts/gpu_benchmark.py on the CPU at a small size: every contender trains, is timed at its best size, and told."""

import json
import statistics
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import pytest
import torch

from numpygpt.model.config import GPTConfig
from numpygpt.model.flops import flops_per_token
from parity_tests.command import files, python
from parity_tests.tolerances import FLOAT64_NORMWISE
from torchgpt.model import GPTModel
from torchgpt.training import calc_loss_batch

SCRIPTS = Path(__file__).parents[1] / "scripts"
SCRIPT = SCRIPTS / "gpu_benchmark.py"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(SCRIPTS))
    script = import_module(SCRIPT.stem)
    baselines = import_module("bench.gpu_baselines")

CONFIG = GPTConfig(vocab_size=13, context_length=7, emb_dim=12, n_heads=3, n_layers=2, drop_rate=0.0, qkv_bias=True)
CPU = torch.device("cpu")
NAMES = list(script.CONTENDERS)


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """A machine that seems to have no GPU, and no time to compile: what is compiled computes the same."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _: None)
    monkeypatch.setitem(script.MODELS, "tiny", CONFIG)


def run(*arguments):
    return script.main([*map(str, arguments)])


def test_every_contender_is_timed_at_its_best_size_and_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--steps", 1, "--rounds", 2, "--peak", 2, "--json", "out.json", "--markdown", "out.md") == 0
    first, head, *lines = capsys.readouterr().out.splitlines()
    assert first == "there is no GPU here: this is the CPU, whose times say nothing about GPUs"
    assert head.split("  ")[0] == "model"
    assert [line.split()[:2] for line in lines[:-2]] == [["tiny", name] for name in NAMES]
    assert lines[-2:] == ["wrote out.json", "wrote out.md"]
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["peaks"] == {"fp32": 2e12, "bf16": 2e12}
    for name, line, result in zip(NAMES, lines, report["results"], strict=False):
        timing, rate = result["timing"], result["tokens_per_second"]
        assert (result["contender"], result["config"], result["tokens"]) == (name, CONFIG.to_dict(), 7)
        assert list(result["tried"]) == ["1", "2"]
        assert timing["batch_size"] == max((1, 2), key=lambda size: result["tried"][str(size)])
        assert len(timing["seconds"]) == 2
        assert rate == timing["batch_size"] * 7 / statistics.median(timing["seconds"])
        assert result["mfu"] == flops_per_token(CONFIG, 7) * rate / 2e12
        assert f"{rate:,.0f}" in line
    markdown = [line.strip("| ").split(" | ") for line in (tmp_path / "out.md").read_text().splitlines() if "|" in line]
    assert [cells[:2] for cells in markdown[2:]] == [["tiny", name] for name in NAMES]
    assert markdown[-1][6] == "1.00", "of torchgpt's own"


@pytest.mark.parametrize("changes", [{}, {"tie_weights": True}, {"bias": False, "qkv_bias": False}])
def test_the_plain_model_is_torchgpts(changes):
    """The same loss and the same gradient of the embedding, in float64, from weights by the same names."""
    config = GPTConfig(**{**CONFIG.to_dict(), **changes})
    task = script.Task(config, 2, 7, CPU)
    weights = {name: tensor.double() for name, tensor in task.weights().items()}
    inputs, targets = task.batch()
    twin, plain = GPTModel(config).double(), baselines.PlainGPT(config).double()
    twin.load_state_dict(weights)
    plain.fill(weights)
    expected, loss = calc_loss_batch(inputs, targets, twin, "cpu"), plain(inputs, targets)
    expected.backward()
    loss.backward()
    assert abs(loss - expected) <= FLOAT64_NORMWISE * abs(expected)
    difference = plain.tokens.weight.grad - twin.tok_emb.weight.grad
    assert torch.linalg.norm(difference) <= FLOAT64_NORMWISE * torch.linalg.norm(twin.tok_emb.weight.grad)


def test_nanogpts_vocabulary_is_padded_with_rows_of_zeros():
    plain = baselines.PlainGPT(CONFIG, 64)
    plain.fill(script.Task(CONFIG, 1, 7, CPU).weights())
    assert plain.head.weight.shape == (64, 12)
    assert not plain.head.weight[13:].any()
    assert plain.head.weight[:13].all()


@pytest.mark.parametrize("name", NAMES)
def test_a_contender_learns_its_batch(name, monkeypatch):
    """Each step begins where the last one ended."""
    monkeypatch.setattr(baselines, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(baselines, "EPOCH", 1)
    step = script.CONTENDERS[name].prepared(script.Task(CONFIG, 2, 7, CPU))
    losses = [float(step()) for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_products_of_the_others_are_in_bfloat16(monkeypatch):
    """A contender that says so computes something else without autocast."""
    bf16 = [name for name, contender in script.CONTENDERS.items() if contender.precision == "bf16"]
    task = script.Task(CONFIG, 2, 7, CPU)
    rounded = {name: float(script.CONTENDERS[name].prepared(task)()) for name in NAMES}
    monkeypatch.setattr(script.Task, "bfloat16", lambda _: nullcontext())
    monkeypatch.setattr("torchgpt.engine.backend.autocast_of", lambda *_: nullcontext)
    exact = {name: float(script.CONTENDERS[name].prepared(task)()) for name in NAMES}
    assert bf16
    assert [name for name in NAMES if rounded[name] != exact[name]] == bf16


# The search


def sizes(fits, first, largest=100):
    """Of each size that is tried, whether it fits."""
    tried = script.search(lambda size: size if size <= fits else None, first, largest)
    return {size: rate is not None for size, rate in tried.items()}


def test_the_search_doubles_until_memory_runs_out_and_tries_between():
    assert sizes(50, 8) == {8: True, 16: True, 32: True, 64: False, 48: True}
    assert sizes(40, 8) == {8: True, 16: True, 32: True, 64: False, 48: False}


def test_the_search_halves_what_is_too_large():
    assert sizes(3, 16) == {16: False, 8: False, 4: False, 2: True, 3: True}
    assert sizes(1, 2) == {2: False, 1: True}
    assert sizes(0, 2) == {2: False, 1: False}


def test_the_search_ends_at_the_largest_size():
    assert sizes(1000, 8, largest=20) == {8: True, 16: True}
    assert sizes(1000, 8, largest=4) == {4: True}


def out_of_memory(name, from_size, error):
    contender = script.CONTENDERS[name]

    def prepared(task):
        if task.batch_size >= from_size:
            raise error
        return contender.prepared(task)

    return contender._replace(prepared=prepared)


TWO = ("--contenders", "eager-fp32", "torchgpt", "--steps", 1, "--rounds", 1)
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")])
def test_a_size_that_does_not_fit_is_left_out(monkeypatch, capsys, error):
    monkeypatch.setitem(script.CONTENDERS, "torchgpt", out_of_memory("torchgpt", 2, error))
    assert run(*TWO, "--batch-sizes", 1, 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split()[:4] == ["tiny", "torchgpt", "bf16", "1"]


def test_where_no_size_fits_the_others_are_told(monkeypatch, capsys):
    monkeypatch.setitem(script.CONTENDERS, "torchgpt", out_of_memory("torchgpt", 1, OUT_OF_MEMORY))
    assert run(*TWO) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:3] == ["tiny", "eager-fp32", "fp32"]
    assert lines[3].split("  ")[-1].strip() == "none fits"


def test_another_error_is_not_hidden(monkeypatch):
    monkeypatch.setitem(script.CONTENDERS, "torchgpt", out_of_memory("torchgpt", 1, RuntimeError("sizes do not match")))
    with pytest.raises(RuntimeError, match="sizes do not match"):
        run(*TWO)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--json", "nowhere/a.json"), "cannot write nowhere/a.json: there is no folder nowhere"),
        (("--markdown", "."), "it is a folder; name a file in it"),
        (("--steps", 0), "--steps is 0; expected at least 1"),
        (("--batch-sizes", 4, 0), "--batch-sizes is 0; expected at least 1"),
        (("--tokens", 8), "--tokens is 8; expected 1 to the 7 of tiny's context_length"),
        (("--peak", 0), "--peak is 0.0; expected a positive number of TFLOP/s"),
        (("--peak", "nan"), "--peak is nan; expected a positive number of TFLOP/s"),
    ],
)
def test_bad_input_gets_one_line_before_the_computation(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "timed", None)  # cannot be called
    assert run(*options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("gpu_benchmark: error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert files(tmp_path) == {}


def test_without_pytorch_the_install_line_is_given():
    done = python("-c", f"import runpy, sys; sys.modules['torch'] = None; runpy.run_path({str(SCRIPT)!r})")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "gpu_benchmark: error: torchgpt needs PyTorch, which is not installed: pip install 'numpygpt[torch]'\n"
    )
