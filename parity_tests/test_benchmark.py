"""scripts/benchmark.py at the smallest sizes: it times, compares, and writes what it says; its counts are right."""

import json
import statistics
import sys
from pathlib import Path

import pytest

from numpygpt import GPTConfig, GPTModel
from parity_tests.command import python

SCRIPTS = Path(__file__).parents[1] / "scripts"
BENCHMARK = SCRIPTS / "benchmark.py"
SMALL = ("--preset", "demo", "--batch-size", 1, "--rounds", 2, "--warm-up", 0, "--threads", 1)
CONFIG = GPTConfig(vocab_size=13, context_length=6, emb_dim=8, n_heads=2, n_layers=3, drop_rate=0.0, qkv_bias=False)


@pytest.fixture
def floor(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from bench import floor

    yield floor
    for name in [name for name in sys.modules if name.partition(".")[0] == "bench"]:
        del sys.modules[name]


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


def test_decoding_says_tokens_a_second_and_the_share_of_the_memorys_rate(tmp_path):
    done = python(BENCHMARK, "decode", *SMALL, "--peers", "numpygpt", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout
    assert "weights streamed at" in done.stdout


def test_parts_add_up_to_the_step(tmp_path):
    done = python(BENCHMARK, "parts", *SMALL, "--tokens", 8, "--rounds", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    seconds = json.loads((tmp_path / "parts-demo-8.json").read_text())["seconds"]
    step = seconds.pop("step")
    assert {"products", "attention", "GELU", "norms", "loss", "optimizer"} <= seconds.keys()
    assert round(sum(seconds.values()), 9) == round(step, 9)
    assert "floor: " in done.stdout


def test_an_unknown_peer_is_named():
    done = python(BENCHMARK, "step", *SMALL, "--peers", "jax")
    assert done.returncode == 2
    assert "no peer jax; there are numpygpt, eager" in done.stderr


def test_the_operations_of_a_step_are_those_of_its_products(floor):
    """Each product of the forward by the shapes of its factors; the backward has two of the same size for each."""
    B, T, D = 2, CONFIG.context_length, CONFIG.emb_dim
    forward = 0
    for name, array in GPTModel(CONFIG).named_parameters().items():
        if array.ndim == 2 and "emb" not in name:
            forward += 2 * B * T * array.size
    pairs = T * (T + 1) // 2  # of a query and a key not later than it
    forward += CONFIG.n_layers * B * 2 * (2 * pairs * D)
    assert floor.training_flops(CONFIG, B, T) == 3 * forward


@pytest.mark.parametrize("tie_weights", [False, True])
def test_decoding_streams_every_weight_but_the_tables(floor, tie_weights):
    config = GPTConfig(**{**CONFIG.to_dict(), "tie_weights": tie_weights})
    state = GPTModel(config).state_dict()
    streamed = sum(array.nbytes for name, array in state.items() if name not in ("tok_emb.weight", "pos_emb.weight"))
    assert floor.decoding_bytes(config) == streamed
    assert floor.optimizer_bytes(config) == 7 * 4 * GPTModel(config).num_parameters()
