"""Where the time of a training step goes, and the floor: the least time that the rates of this machine allow."""

import importlib
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from bench.contenders import Task
from numpygpt import AdamW, GPTConfig, GPTModel
from numpygpt.model.sizes import num_parameters
from numpygpt.parallel import over_rows, product

#: The parts of a step: each is the forward and the backward of these modules. If a part calls another part, the time of
#: that call counts only for the other part.
PARTS = {
    "products": ("ops.linear",),
    "attention": ("ops.attention", "ops.flash_attention"),
    "softmax": ("ops.softmax",),
    "GELU": ("ops.gelu", "ops.gelu_erf"),
    "norms": ("ops.layer_norm",),
    "dropout": ("ops.dropout",),
    "copies of heads": ("layers.multi_head_attention",),
    "residual sums": ("layers.transformer_block",),
    "loss": ("ops.cross_entropy",),
    "embedding": ("ops.embedding",),
}


@contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """Within the `with`, the seconds that are spent in the forwards and backwards of each part.

    The softmax of flash attention is mixed with its products, so it counts as attention.
    """
    seconds: dict[str, float] = defaultdict(float)
    originals: list[tuple[Any, str, Callable[..., Any]]] = []
    nested = [0.0]  # for each part that is running, the seconds of the parts that it called

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nested.append(0.0)
            start = time.perf_counter()
            result = function(*arguments, **options)
            elapsed = time.perf_counter() - start
            seconds[part] += elapsed - nested.pop()
            nested[-1] += elapsed
            return result

        return run

    for part, names in PARTS.items():
        for module in (importlib.import_module(f"numpygpt.{name}") for name in names):
            for direction in ("forward", "backward"):
                originals.append((module, direction, getattr(module, direction)))
                setattr(module, direction, timed(part, getattr(module, direction)))
    try:
        yield seconds
    finally:
        for module, direction, function in originals:
            setattr(module, direction, function)


def profile(task: Task, rounds: int, attention: str) -> dict[str, float]:
    """The median seconds of each part of a step, and of the whole step."""
    config = task.config
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (task.batch_size, task.tokens + 1))
    model = GPTModel(config, attention=attention)
    optimizer = AdamW(model, lr=1e-4)
    steps = []
    for _ in range(rounds + 1):
        with timed_parts() as seconds:
            start = time.perf_counter()
            _, grads = model.loss_and_grads(ids[:, :-1], ids[:, 1:])
            middle = time.perf_counter()
            optimizer.step(grads)
            del grads
            end = time.perf_counter()
        seconds["optimizer"] = end - middle
        seconds["rest"] = end - start - sum(seconds.values())
        steps.append({**seconds, "step": end - start})
    return {part: statistics.median(step[part] for step in steps[1:]) for part in steps[0]}


def training_flops(config: GPTConfig, batch_size: int, tokens: int) -> float:
    """The floating-point operations of a step's matrix products. The backward has two products for each of the forward.

    In attention, only the pairs of a query and a key that it may read are counted.
    """
    D, rows = config.emb_dim, batch_size * tokens
    weights = config.n_layers * 12 * D * D + config.vocab_size * D
    return 3 * 2 * rows * (weights + config.n_layers * (tokens + 1) * D)


def optimizer_bytes(config: GPTConfig) -> float:
    """The bytes that AdamW moves in float32: it reads the gradient, and reads and writes parameter and both moments."""
    return 7 * 4 * num_parameters(config)


def decoding_bytes(config: GPTConfig) -> float:
    """The bytes of the weights that are read for one more token: all weights except the tables of embeddings."""
    tables = config.context_length * (config.position == "learned") + config.vocab_size * (not config.tie_weights)
    return 4 * (num_parameters(config) - tables * config.emb_dim)


def product_rate(size: int = 2048) -> float:
    """How many operations a second a product of two square float32 matrices does."""
    a, b = np.random.default_rng(1).standard_normal((2, size, size), dtype=np.float32)
    return 2 * size**3 / _fastest(lambda: product(a, b))


def copy_rate(size: int = 2**29) -> float:
    """How many bytes a second are read and written by a copy, with one thread on each core."""
    source, target = np.ones((2, 1024, size // 4096), np.float32)
    return 2 * size / _fastest(lambda: over_rows(lambda s, t: np.copyto(t, s), source, target))


def read_rate(size: int = 2**29) -> float:
    """How many bytes a second are read by a product of a vector and a matrix that is much larger than any cache."""
    matrix, vector = np.ones((size // 4096, 1024), np.float32), np.ones(1024, np.float32)
    return size / _fastest(lambda: matrix @ vector)


def _fastest(function: Callable[[], object], repeats: int = 9) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def machine() -> dict[str, str]:
    """The processor, and the versions of what is installed."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "processor": _processor(),
        "python": platform.python_version(),
        **_versions("numpy", "torch", "transformers"),
        "blas": f"{blas['name']} {blas['version']}",
    }


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _processor() -> str:
    """The name of the processor, as Linux gives it, or else as Python does."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
