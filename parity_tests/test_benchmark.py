"""scripts/benchmark.py at the smallest sizes: it times, compares, and writes what it says; its counts are right."""

import json
import statistics
import sys
import time
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from numpygpt import GPTConfig, GPTModel
from parity_tests.command import python
from parity_tests.tolerances import FLOAT64_NORMWISE

SCRIPTS = Path(__file__).parents[1] / "scripts"
BENCHMARK = SCRIPTS / "benchmark.py"
SMALL_PARTS = ("--preset", "demo", "--batch-size", 1, "--rounds", 2, "--threads", 1)
SMALL = (*SMALL_PARTS, "--warm-up", 0)
CONFIG = GPTConfig(vocab_size=13, context_length=6, emb_dim=8, n_heads=2, n_layers=3, drop_rate=0.0, qkv_bias=False)


@pytest.fixture
def scripts(monkeypatch):
    """Modules of scripts/ can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("bench", "benchmark")]:
        del sys.modules[name]


@pytest.fixture
def floor(scripts):
    return import_module("bench.floor")


@pytest.fixture
def benchmark(scripts, monkeypatch):
    """The script, in a process that already has one thread."""
    script = import_module("benchmark")
    for name in script.THREADS:
        monkeypatch.setenv(name, "1")
    return script


def test_a_comparison_has_ratios_by_round_a_table_and_a_chart(tmp_path):
    done = python(BENCHMARK, "step", *SMALL, "--tokens", 8, "--peers", "eager", "numpygpt-flash", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "step-demo-8.json").read_text())
    results = report["results"]
    assert list(results) == ["numpygpt", "eager", "numpygpt-flash"]
    for name, result in results.items():
        expected = [a / b for a, b in zip(results["numpygpt"]["seconds"], result["seconds"], strict=True)]
        assert result["ratios"] == expected
        assert f"{name} " in done.stdout
        assert f"{statistics.median(expected):.3f}" in done.stdout
    assert (tmp_path / "step-demo-8.png").read_bytes().startswith(b"\x89PNG")
    assert report["threads"] == 1


def test_decoding_says_tokens_a_second_and_the_share_of_the_memorys_rate(tmp_path, floor):
    """This holds for the demo's model too, whose context is shorter than the decoded text."""
    done = python(BENCHMARK, "decode", *SMALL, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "decode-demo.json").read_text())
    contenders = import_module("bench.contenders")
    config = contenders.Task("decode", "demo", 1, contenders.DECODED_TOKENS, 1).config
    assert report["model"] == config.to_dict()
    assert config.context_length == contenders.PROMPT_TOKENS + contenders.NEW_TOKENS
    assert list(report["results"]) == ["numpygpt", "huggingface"]
    for result in report["results"].values():
        assert result["tokens_per_second"] == contenders.NEW_TOKENS / statistics.median(result["seconds"])
        assert f"{result['tokens_per_second']:.1f} tokens/s" in done.stdout
    rate = report["results"]["numpygpt"]["tokens_per_second"]
    assert report["bytes_per_second"] == pytest.approx(rate * floor.decoding_bytes(config), rel=FLOAT64_NORMWISE)
    streamed, read = report["bytes_per_second"], report["read_rate"]
    assert f"streamed at {streamed / 1e9:.1f} GB/s of this machine's {read / 1e9:.1f}: {streamed / read:.2f}\n" in (
        done.stdout
    )


def test_a_sweep_has_a_point_a_task_and_a_chart(tmp_path, monkeypatch, benchmark, floor, capsys):
    tasks = [benchmark.Task("step", "demo", batch_size, 8, 1) for batch_size in (1, 2)]
    raced = cache(benchmark.race)  # so that the point of both lines is timed once
    monkeypatch.setattr(benchmark, "SWEEP", {"batch size": tasks, "a point": tasks[:1]})
    monkeypatch.setattr(benchmark, "race", lambda task, names, *how: raced(task, tuple(names), *how))
    drawn = []
    loglog = Axes.loglog
    monkeypatch.setattr(Axes, "loglog", lambda axes, x, y, *a, **k: drawn.append((x, y)) or loglog(axes, x, y, *a, **k))
    assert benchmark.main(["sweep", "--rounds", "2", "--warm-up", "0", "--out", str(tmp_path)]) == 0
    points = json.loads((tmp_path / "sweep.json").read_text())["points"]
    assert [(point["line"], point["batch_size"]) for point in points] == [
        ("batch size", 1), ("batch size", 2), ("a point", 1)
    ]  # fmt: skip
    assert [point["flops"] for point in points[:2]] == [floor.training_flops(t.config, t.batch_size, 8) for t in tasks]
    for line, (flops, seconds) in zip((points[:2], points[:2], points[2:], points[2:]), drawn, strict=True):
        assert flops == [point["flops"] for point in line]
        assert len(seconds) == len(line)
    medians = [statistics.median(point["results"]["numpygpt"]["seconds"]) for point in points[:2]]
    assert drawn[0][1] == medians
    shown = capsys.readouterr().out
    assert all(f"{median:.3f} (" in shown for median in medians)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


# Where a step's time goes


def test_parts_are_written_beside_the_floor(tmp_path):
    done = python(BENCHMARK, "parts", *SMALL_PARTS, "--tokens", 8, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "parts-demo-8.json").read_text())
    for part, seconds in report["seconds"].items():
        assert f"\n{part:<20}{seconds:>9.3f}\n" in done.stdout
    assert f"takes {report['seconds']['step'] / report['floor']:.2f} times that" in done.stdout
    assert (tmp_path / "parts-demo-8.png").read_bytes().startswith(b"\x89PNG")


def profile(floor, attention="math"):
    """The profile of one counted step, so that all parts are of the same step."""
    return floor.profile(import_module("bench.contenders").Task("step", "demo", 1, 8, 1), 1, attention)


@pytest.mark.parametrize("attention", ["math", "flash"])
def test_every_part_is_there_and_none_is_negative(floor, attention):
    seconds = profile(floor, attention)
    without = {"softmax"} if attention == "flash" else set()
    assert seconds.keys() == {*floor.PARTS, "optimizer", "rest", "step"} - without
    assert min(seconds.values()) > 0


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("module", "part"),
    [("ops.gelu", "GELU"), ("ops.softmax", "softmax"), ("layers.multi_head_attention", "copies of heads")],
)
def test_what_is_slow_shows_in_its_part_alone(floor, monkeypatch, module, part, direction):
    """Softmax is called by attention, and attention by the layer that splits and merges heads."""
    slow = import_module(f"numpygpt.{module}")
    function, clock = getattr(slow, direction), time.perf_counter
    pause, paused_so_far = 1000.0, [0.0]  # seconds that pass on the clock alone, far longer than a busy machine takes

    def paused(*arguments, **options):
        paused_so_far[0] += pause
        return function(*arguments, **options)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + paused_so_far[0])
    monkeypatch.setattr(slow, direction, paused)
    seconds = profile(floor)
    blocks = import_module("bench.contenders").MODELS["demo"].n_layers
    assert seconds.pop("step") >= blocks * pause
    assert seconds.pop(part) >= blocks * pause
    assert all(value < pause for value in seconds.values())
    assert getattr(slow, direction) is paused


# What cannot be run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("step", "--peers", "jax"), "argument --peers: invalid choice: 'jax' (choose from 'all', 'numpygpt', 'eager'"),
        (("step", "--attention", "flash"), "unrecognized arguments: --attention flash"),
        (("decode", "--tokens", "8"), "unrecognized arguments: --tokens 8"),
        (("parts", "--peers", "eager"), "unrecognized arguments: --peers eager"),
        *[
            (("sweep", option, "1"), f"unrecognized arguments: {option} 1")
            for option in ("--threads", "--preset", "--peers", "--tokens", "--batch-size")
        ],
    ],
)
def test_an_option_that_a_task_does_not_heed_is_refused(benchmark, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert stop.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: ")
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "missing", "message"),
    [
        (("step", "--threads", "1"), "torch", "the peer eager needs torch; install with: pip install torch"),
        (("sweep",), "torch", "the peer eager needs torch"),
        (("decode", "--threads", "1"), "transformers", "the peer huggingface needs transformers"),
    ],
)
def test_a_peer_whose_package_is_missing_is_told_before_the_race(
    benchmark, monkeypatch, capsys, arguments, missing, message
):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(benchmark, "race", None)  # cannot be called
    assert benchmark.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"benchmark: error: {message}")
    assert (printed.err.count("\n"), printed.out) == (1, "")


def test_what_is_not_installed_has_no_version(floor, monkeypatch):
    def no_torch(name):
        if name == "torch":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(floor, "version", no_torch)
    assert list(floor.machine()) == ["processor", "python", "numpy", "transformers", "blas"]


def test_a_contender_that_has_ended_is_named(scripts, benchmark):
    turns = import_module("bench.turns")
    worker = turns.Worker("eager", benchmark.Task("step", "demo", 1, 8, 1))
    worker.process.kill()
    worker.process.wait()
    with pytest.raises(SystemExit, match="error: eager ended with status -9; its message stands above"):
        worker.run(counted=True)
    worker.stop()


# Counts


def test_the_operations_of_a_step_are_those_of_its_products(floor):
    """The forward's products are counted by the shapes of their factors; the backward has two of that size for each."""
    B, T, D = 2, CONFIG.context_length, CONFIG.emb_dim
    forward = 0
    for name, array in GPTModel(CONFIG).named_parameters().items():
        if array.ndim == 2 and "emb" not in name:
            forward += 2 * B * T * array.size
    pairs = T * (T + 1) // 2  # pairs of a query and a key that is not later
    forward += CONFIG.n_layers * B * 2 * (2 * pairs * D)
    assert floor.training_flops(CONFIG, B, T) == 3 * forward


@pytest.mark.parametrize("tie_weights", [False, True])
def test_decoding_streams_every_weight_but_the_tables(floor, tie_weights):
    config = GPTConfig(**{**CONFIG.to_dict(), "tie_weights": tie_weights})
    state = GPTModel(config).state_dict()
    streamed = sum(array.nbytes for name, array in state.items() if name not in ("tok_emb.weight", "pos_emb.weight"))
    assert floor.decoding_bytes(config) == streamed
    assert floor.optimizer_bytes(config) == 7 * 4 * GPTModel(config).num_parameters()
