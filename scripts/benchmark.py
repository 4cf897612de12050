"""Time numpygpt against its peers, in turn, on the same cores, and where its own time goes.

    python scripts/benchmark.py step                        # a training step of the 124M model, and PyTorch's
    python scripts/benchmark.py step --peers all --tokens 1024 --batch-size 1
    python scripts/benchmark.py step --preset demo          # the model of `make demo`
    python scripts/benchmark.py decode                      # 128 tokens after a prompt of 32
    python scripts/benchmark.py parts                       # a step by part, and the floor that this machine sets

Every contender is a process of its own with the same number of threads, and waits without computing while the others
run. They take turns, a round at a time, and the ratio is taken within each round, so that a machine whose speed drifts
does not favor anybody; the median over the rounds is what counts, and the spread shows how noisy the machine was.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from numpygpt import GPT2_SIZES, AdamW, GPTConfig, GPTModel
from numpygpt.allocator import keep_freed_memory
from numpygpt.cli import DEFAULT_CONFIG

PRESETS = {**GPT2_SIZES, "demo": DEFAULT_CONFIG}
STEP_PEERS = ("eager", "fused", "compiled", "sdpa")
DECODE_PEERS = ("book", "huggingface")
OURS = "numpygpt"
PROMPT_TOKENS, NEW_TOKENS = 32, 128


# Contenders: each function prepares and returns what is timed.


def numpy_step(config: GPTConfig, inputs: np.ndarray, targets: np.ndarray) -> Callable[[], object]:
    model = GPTModel(config)
    optimizer = AdamW(model, lr=1e-4)

    def step() -> None:
        _, grads = model.loss_and_grads(inputs, targets)
        optimizer.step(grads)

    return step


def torch_step(config: GPTConfig, inputs: np.ndarray, targets: np.ndarray, *, peer: str) -> Callable[[], object]:
    import torch

    from torchgpt import GPTModel as TorchGPTModel

    torch.manual_seed(123)
    model = TorchGPTModel(config, attention="sdpa" if peer == "sdpa" else "math")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=peer in ("fused", "compiled"))
    run = torch.compile(model) if peer == "compiled" else model
    torch_inputs, torch_targets = torch.from_numpy(inputs), torch.from_numpy(targets)

    def step() -> None:
        optimizer.zero_grad()
        logits = run(torch_inputs)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch_targets.flatten()).backward()
        optimizer.step()

    return step


def numpy_decode(config: GPTConfig, prompt: np.ndarray) -> Callable[[], object]:
    from numpygpt import generate

    model = GPTModel(config)
    return lambda: generate(model, prompt, NEW_TOKENS, config.context_length)


def torch_decode(config: GPTConfig, prompt: np.ndarray, *, peer: str) -> Callable[[], object]:
    import torch

    idx = torch.from_numpy(prompt)
    if peer == "book":
        import torchgpt

        model = torchgpt.GPTModel(config).eval()
        return lambda: torchgpt.generate_text_simple(model, idx, NEW_TOKENS, config.context_length)
    from transformers import GPT2Config, GPT2LMHeadModel

    hf_config = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.context_length,
        n_embd=config.emb_dim,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        eos_token_id=None,
        bos_token_id=None,
    )
    hf_model = GPT2LMHeadModel(hf_config).eval()
    mask = torch.ones_like(idx)
    return lambda: hf_model.generate(
        idx, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True, pad_token_id=0
    )


def contender(name: str, task: str, config: GPTConfig, batch_size: int, tokens: int) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    if task == "decode":
        prompt = rng.integers(0, config.vocab_size, (batch_size, PROMPT_TOKENS))
        return numpy_decode(config, prompt) if name == OURS else torch_decode(config, prompt, peer=name)
    ids = rng.integers(0, config.vocab_size, (batch_size, tokens + 1))
    inputs, targets = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
    return numpy_step(config, inputs, targets) if name == OURS else torch_step(config, inputs, targets, peer=name)


# Taking turns


def work(parsed: argparse.Namespace) -> None:
    """A contender's process: for each line on standard input one timed run, for each run a line of JSON."""
    if parsed.contender == OURS:
        keep_freed_memory()
    else:
        import torch

        torch.set_num_threads(parsed.threads)
    run = contender(parsed.contender, parsed.task, config_of(parsed), parsed.batch_size, parsed.tokens)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(json.dumps({"seconds": seconds, "peak_mib": peak}), flush=True)


class Worker:
    """The other end of `work`."""

    def __init__(self, name: str, parsed: argparse.Namespace) -> None:
        self.name, self.seconds, self.peak_mib = name, [], 0.0
        threads = str(parsed.threads)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }
        arguments = ["--preset", parsed.preset, "--batch-size", str(parsed.batch_size), "--threads", threads]
        arguments += ["--tokens", str(parsed.tokens), "--contender", name]
        self.process = subprocess.Popen(
            [sys.executable, __file__, parsed.task, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, *, counted: bool) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: {self.name} ended with status {self.process.wait()}; its message stands above")
        report = json.loads(line)
        if counted:
            self.seconds.append(report["seconds"])
        self.peak_mib = report["peak_mib"]

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(parsed: argparse.Namespace) -> dict[str, Any]:
    peers = (DECODE_PEERS if parsed.task == "decode" else STEP_PEERS) if "all" in parsed.peers else parsed.peers
    workers = [Worker(name, parsed) for name in (OURS, *peers)]
    for _ in range(parsed.warm_up):
        for worker in workers:
            worker.run(counted=False)
    for finished in range(1, parsed.rounds + 1):
        for worker in workers:
            worker.run(counted=True)
        print(f"\rround {finished} of {parsed.rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for worker in workers:
        worker.stop()
    return {
        "task": parsed.task,
        "model": config_of(parsed).to_dict(),
        "batch_size": parsed.batch_size,
        "tokens": parsed.tokens,
        "threads": parsed.threads,
        "machine": machine(),
        "results": {
            worker.name: {
                "seconds": worker.seconds,
                "ratios": [ours / theirs for ours, theirs in zip(workers[0].seconds, worker.seconds, strict=True)],
                "peak_mib": worker.peak_mib,
            }
            for worker in workers
        },
    }


def machine() -> dict[str, str]:
    from importlib.metadata import version

    names = ("numpy", "torch", "transformers")
    return {"processor": processor(), "python": platform.python_version(), **{name: version(name) for name in names}}


def processor() -> str:
    """The processor's own name where Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def print_comparison(report: dict[str, Any]) -> None:
    print(
        f"{report['task']}, batch {report['batch_size']}, {report['tokens']} tokens, {report['threads']} threads, "
        f"median (smallest to largest) of {len(report['results'][OURS]['seconds'])} rounds"
    )
    print(f"{'':14}{'seconds':>26}{'numpygpt / peer':>28}{'peak MiB':>12}{'ours / peer':>13}")
    ours = report["results"][OURS]
    for name, result in report["results"].items():
        print(
            f"{name:<14}{spread(result['seconds']):>26}{spread(result['ratios']):>28}{result['peak_mib']:>12,.0f}"
            f"{ours['peak_mib'] / result['peak_mib']:>13.2f}"
        )


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


# Where the time goes


PARTS = {
    "products": ("numpygpt.ops.linear",),
    "attention": ("numpygpt.ops.attention",),
    "GELU": ("numpygpt.ops.gelu",),
    "norms": ("numpygpt.ops.layer_norm",),
    "loss": ("numpygpt.ops.cross_entropy",),
    "embedding": ("numpygpt.ops.embedding",),
    "dropout": ("numpygpt.ops.dropout",),
}


@contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """Seconds spent in the forwards and backwards of each part, within the block."""
    import importlib

    seconds: dict[str, float] = defaultdict(float)
    originals = []

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **options)
            seconds[part] += time.perf_counter() - start
            return result

        return run

    for part, modules in PARTS.items():
        for module in map(importlib.import_module, modules):
            for direction in ("forward", "backward"):
                function = getattr(module, direction)
                originals.append((module, direction, function))
                setattr(module, direction, timed(part, function))
    try:
        yield seconds
    finally:
        for module, direction, function in originals:
            setattr(module, direction, function)


def parts(parsed: argparse.Namespace) -> None:
    config = config_of(parsed)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.vocab_size, (parsed.batch_size, parsed.tokens + 1))
    model = GPTModel(config)
    optimizer = AdamW(model, lr=1e-4)
    steps: list[dict[str, float]] = []
    for step in range(parsed.rounds + 1):
        with timed_parts() as seconds:
            start = time.perf_counter()
            _, grads = model.loss_and_grads(ids[:, :-1], ids[:, 1:])
            middle = time.perf_counter()
            optimizer.step(grads)
            end = time.perf_counter()
        seconds["optimizer"] = end - middle
        seconds["rest: sums, copies"] = end - start - sum(seconds.values())
        if step > 0:
            steps.append({**seconds, "step": end - start})
    print(f"seconds of a step, {parsed.batch_size} x {parsed.tokens} tokens, median of {parsed.rounds}:")
    for part in steps[0]:
        print(f"{part:<20}{statistics.median(step[part] for step in steps):>9.3f}")
    print_floor(config, parsed, statistics.median(step["step"] for step in steps))


def print_floor(config: GPTConfig, parsed: argparse.Namespace, step: float) -> None:
    product_rate, copy_rate = measured_product_rate(), measured_copy_rate()
    operations, moved = training_flops(config, parsed.batch_size, parsed.tokens), optimizer_bytes(config)
    floor = operations / product_rate + moved / copy_rate
    print(
        f"this machine: products {product_rate / 1e9:.0f} GFLOP/s, memory {copy_rate / 1e9:.1f} GB/s (read + written)"
    )
    print(
        f"floor: {operations / 1e9:.0f} GFLOP {operations / product_rate:.3f} s + the optimizer's {moved / 1e9:.1f} GB",
        end=" ",
    )
    print(f"{moved / copy_rate:.3f} s = {floor:.3f} s; the step takes {step / floor:.2f} times that")
    print(f"share of the product rate over the whole step: {operations / product_rate / step:.2f}")


def training_flops(config: GPTConfig, batch_size: int, tokens: int) -> float:
    """Of the matrix products of a step, the backward's two for each of the forward's; attention counted in full."""
    D, rows = config.emb_dim, batch_size * tokens
    weights = config.n_layers * 12 * D * D + config.vocab_size * D
    return 3 * 2 * rows * (weights + config.n_layers * 2 * tokens * D)


def optimizer_bytes(config: GPTConfig) -> float:
    """AdamW reads the gradient and reads and writes the parameter and both moments, in float32."""
    from numpygpt.memory import num_parameters

    return 7 * 4 * num_parameters(config)


def measured_product_rate(size: int = 2048) -> float:
    a, b = np.random.default_rng(1).standard_normal((2, size, size), dtype=np.float32)
    return 2 * size**3 / fastest(lambda: a @ b)


def measured_copy_rate(size: int = 2**27) -> float:
    """Bytes read and written a second, by one thread a core."""
    from numpygpt.parallel import over_rows

    source, target = np.ones(size // 4, np.float32), np.ones(size // 4, np.float32)
    return 2 * size / fastest(lambda: over_rows(lambda s, t: np.copyto(t, s), source, target))


def fastest(function: Callable[[], object], repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def config_of(parsed: argparse.Namespace) -> GPTConfig:
    config = replace(PRESETS[parsed.preset], drop_rate=0.0)
    if parsed.task == "decode":
        return config
    return replace(config, context_length=max(parsed.tokens, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("step", "decode", "parts"))
    parser.add_argument("--preset", choices=PRESETS, default="gpt2-small")
    parser.add_argument("--batch-size", type=int, help="(default: 2; demo 16; decode 1)")
    parser.add_argument("--tokens", type=int, help="sequence length of a step (default: 256; demo 128)")
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: 5)")
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before, not counted (default: 1)")
    parser.add_argument(
        "--peers",
        nargs="+",
        default=None,
        help=f"step: {', '.join(STEP_PEERS)}; decode: {', '.join(DECODE_PEERS)}; or all",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    parsed.peers = parsed.peers or (["huggingface"] if parsed.task == "decode" else ["eager"])
    demo = parsed.preset == "demo"
    parsed.batch_size = parsed.batch_size or (1 if parsed.task == "decode" else 16 if demo else 2)
    parsed.tokens = parsed.tokens or (128 if demo else 256)
    if parsed.contender:
        work(parsed)
    elif parsed.task == "parts":
        parts(parsed)
    else:
        report = compare(parsed)
        print_comparison(report)
        if parsed.json:
            parsed.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
