"""Time training steps on a GPU: torchgpt's, and those that people write in plain PyTorch.

    python scripts/gpu_benchmark.py                                  # GPT-2 124M and 1558M, 1024 tokens
    python scripts/gpu_benchmark.py --presets gpt2 --contenders nanogpt torchgpt --markdown gpu.md
    python scripts/gpu_benchmark.py --batch-sizes 32 48 64           # these, in the place of the search

The contenders: book (the book's model and its loop, in float32), eager-fp32 (a GPT of PyTorch's own norms, GELU and
flash attention), eager-bf16 (the same under autocast), compiled (the same, compiled), nanogpt (the same with what
nanoGPT's train.py adds: fused AdamW, clipping, and the vocabulary padded to a multiple of 64), and torchgpt (a step of
`torchgpt train --precision bf16 --attention flash --compile`, with its data loading, its loss in blocks of rows, and
its clipping). All train the same model from the same weights, and keep parameters and moments in float32.

Each contender is timed at the batch size that gives it the most tokens a second. The search begins with
--first-batch-size, which it doubles until memory runs out, or halves if already the first is too large; then it tries
the size between the last two. A size is timed for a few steps after two that are not counted, in which a model is
compiled. The best one is timed again, for --rounds times --steps steps, and the median round counts.

MFU is the share of the device's peak (`numpygpt/model/flops.py`): 6 operations for each parameter of a matrix, the head
included, and 12 x blocks x width x tokens, for each token; nothing is taken off for the causal mask. The peak is that
of the contender's own format. For a device that is not listed, --peak gives it.

Without a GPU, a small model is timed on the CPU, which shows that the script works and says nothing about GPUs. Exit
status: 0 if every contender was timed, 1 if one has no batch size that fits into memory, 2 for unusable input.
"""

import argparse
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.errors import BAD_INPUT, InputError

try:
    import torchgpt  # noqa: F401
except ImportError as error:  # it says what to install
    print(f"gpu_benchmark: error: {error}", file=sys.stderr)
    sys.exit(BAD_INPUT)

import torch
from bench.gpu import device_name, precision_of_products
from bench.gpu_baselines import CONTENDERS, OURS, Contender, Task
from bench.tables import as_markdown, as_text
from tqdm import tqdm

import numpygpt
from numpygpt.files import check_writable, write_text
from numpygpt.model.config import PRESETS, GPTConfig
from numpygpt.model.flops import flops_per_token, peak_of, utilization

NOT_TIMED = 1
#: For a machine without a GPU.
TINY = GPTConfig(vocab_size=256, context_length=64, emb_dim=64, n_heads=4, n_layers=2, drop_rate=0.0, qkv_bias=True)
MODELS = {"tiny": TINY, **PRESETS}
WARM_UP = 2
STEPS_OF_A_TRIAL = 3


class Setting(NamedTuple):
    """What is the same for all contenders on one model."""

    model: str
    config: GPTConfig
    tokens: int
    device: torch.device

    def task(self, batch_size: int) -> Task:
        return Task(self.config, batch_size, self.tokens, self.device)


class Timing(NamedTuple):
    """What was measured of a contender at one batch size.

    seconds       of a step, in each round
    memory        the most bytes that PyTorch's allocator has given out; None on the CPU
    loss          of the last step, in nats a token
    """

    batch_size: int
    seconds: list[float]
    memory: int | None
    loss: float

    def tokens_per_second(self, tokens: int) -> float:
        return self.batch_size * tokens / statistics.median(self.seconds)


class Result(NamedTuple):
    """A contender on one model: the timing at its best batch size, and tokens/s at each size that was tried.

    A size that does not fit into memory has None. If none does, there is no timing.
    """

    setting: Setting
    contender: str
    timing: Timing | None
    tried: dict[int, float | None]

    @property
    def tokens_per_second(self) -> float | None:
        return self.timing and self.timing.tokens_per_second(self.setting.tokens)

    def mfu(self, peak: float | None) -> float | None:
        if peak is None or self.tokens_per_second is None:
            return None
        return utilization(self.setting.config, self.setting.tokens, self.tokens_per_second, peak)


# Timing


def timed(contender: Contender, task: Task, steps: int, rounds: int) -> Timing | None:
    """The timing of so many rounds of steps; None if there is not enough memory."""
    try:
        with precision_of_products("high" if contender.high else "highest"):
            return _timed(contender, task, steps, rounds)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        torch.compiler.reset()
        if task.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """PyTorch's own error, the one that cuBLAS gets when it finds no room for its workspace, or the CPU's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


def _timed(contender: Contender, task: Task, steps: int, rounds: int) -> Timing:
    step = contender.prepared(task)
    for _ in range(WARM_UP):
        loss = step()
    on_gpu = task.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds):
        finish(task.device)
        start = time.perf_counter()
        for _ in range(steps):
            loss = step()
        finish(task.device)
        seconds.append((time.perf_counter() - start) / steps)
    memory = torch.cuda.max_memory_allocated() if on_gpu else None
    return Timing(task.batch_size, seconds, memory, float(loss))


def finish(device: torch.device) -> None:
    """Wait until the device has computed all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def search(rate_of: Callable[[int], float | None], first: int, largest: int) -> dict[int, float | None]:
    """The rate of each batch size that the search tries: see the head of this file. None does not fit into memory."""
    size = min(first, largest)
    tried = {size: rate_of(size)}
    while tried[size] is None and size > 1:
        size //= 2
        tried[size] = rate_of(size)
    while tried[size] is not None and 2 * size <= largest and 2 * size not in tried:
        size *= 2
        tried[size] = rate_of(size)
    fitting = [size for size, rate in tried.items() if rate is not None]
    too_large = [size for size, rate in tried.items() if rate is None]
    if fitting and too_large:
        between = (max(fitting) + min(too_large)) // 2
        if between not in tried:
            tried[between] = rate_of(between)
    return tried


def measured(setting: Setting, name: str, parsed: argparse.Namespace) -> Result:
    """The contender at its best batch size."""
    contender = CONTENDERS[name]

    def rate_of(batch_size: int) -> float | None:
        timing = timed(contender, setting.task(batch_size), STEPS_OF_A_TRIAL, 1)
        return timing and timing.tokens_per_second(setting.tokens)

    if parsed.batch_sizes:
        tried = {size: rate_of(size) for size in parsed.batch_sizes}
    else:
        tried = search(rate_of, parsed.first_batch_size, parsed.largest_batch_size)
    rates = {size: rate for size, rate in tried.items() if rate is not None}
    if not rates:
        return Result(setting, name, None, tried)
    best = max(rates, key=rates.__getitem__)
    return Result(setting, name, timed(contender, setting.task(best), parsed.steps, parsed.rounds), tried)


# What is shown


HEAD = ["model", "contender", "products", "batch size", "ms a step", "tokens/s", "of torchgpt's", "MFU", "memory"]


def table(results: Sequence[Result], peaks: Mapping[str, float | None]) -> list[list[str]]:
    """The head of a table, and a line for each result."""
    return [HEAD, *(line(result, results, peaks) for result in results)]


def line(result: Result, results: Sequence[Result], peaks: Mapping[str, float | None]) -> list[str]:
    precision = CONTENDERS[result.contender].precision
    cells = [result.setting.model, result.contender, precision]
    if result.timing is None:
        return [*cells, "none fits", *[""] * (len(HEAD) - len(cells) - 1)]
    timing, rate, mfu = result.timing, result.tokens_per_second, result.mfu(peaks[precision])
    ours = [other.tokens_per_second for other in results if other.setting == result.setting and other.contender == OURS]
    return [
        *cells,
        f"{timing.batch_size}",
        f"{1000 * statistics.median(timing.seconds):,.1f}",
        f"{rate:,.0f}",
        f"{rate / ours[0]:.2f}" if rate and ours and ours[0] else "",
        "" if mfu is None else f"{mfu:.1%}",
        "" if timing.memory is None else f"{timing.memory / 2**30:.1f} GiB",
    ]


def facts(parsed: argparse.Namespace, device: torch.device, peaks: Mapping[str, float | None]) -> dict[str, Any]:
    """On what it was computed, and how it was measured."""
    return {
        "device": device_name(device.type),
        "versions": {"numpygpt": numpygpt.__version__, "torch": torch.__version__, "cuda": torch.version.cuda},
        "peaks": dict(peaks),
        "steps": parsed.steps,
        "rounds": parsed.rounds,
        "contenders": {name: CONTENDERS[name].about for name in parsed.contenders},
    }


def as_json(results: Iterable[Result], about: Mapping[str, Any]) -> str:
    entries = [
        {
            "model": result.setting.model,
            "config": result.setting.config.to_dict(),
            "tokens": result.setting.tokens,
            "flops_per_token": flops_per_token(result.setting.config, result.setting.tokens),
            "contender": result.contender,
            "timing": result.timing and result.timing._asdict(),
            "tokens_per_second": result.tokens_per_second,
            "mfu": result.mfu(about["peaks"][CONTENDERS[result.contender].precision]),
            "tried": result.tried,
        }
        for result in results
    ]
    return json.dumps({**about, "results": entries}, indent=1) + "\n"


def markdown_page(lines: Sequence[Sequence[str]], about: Mapping[str, Any]) -> str:
    what = "\n".join(f"- {name}: {said}" for name, said in about["contenders"].items())
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    return f"{about['device']}; {versions}.\n\n{as_markdown(lines)}\n\n{what}\n"


# The command


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=MODELS, default=["gpt2", "gpt2-xl"] if on_gpu else ["tiny"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--tokens", type=int, help="length of the sequences (default: the model's context_length)")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--batch-sizes", type=int, nargs="+", help="try these sizes, and search no others")
    sizes.add_argument("--first-batch-size", type=int, default=8 if on_gpu else 1, help="where the search begins")
    largest = 1024 if on_gpu else 2
    parser.add_argument("--largest-batch-size", type=int, default=largest, help="where it ends at the latest")
    parser.add_argument("--steps", type=int, default=10, help="of a round (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts (default: 3)")
    parser.add_argument("--peak", type=float, metavar="TFLOPS", help="the device's peak in every format, in TFLOP/s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there, too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    return parser.parse_args(arguments)


def check(parsed: argparse.Namespace, device: torch.device) -> None:
    """Raise InputError for what cannot be measured. Nothing is computed before."""
    counts = {name: getattr(parsed, name) for name in ("first_batch_size", "largest_batch_size", "steps", "rounds")}
    for name, count in (*counts.items(), *(("batch_sizes", size) for size in parsed.batch_sizes or ())):
        if count < 1:
            raise InputError(f"--{name.replace('_', '-')} is {count}; expected at least 1")
    for name in parsed.presets:
        longest = MODELS[name].context_length
        if parsed.tokens is not None and not 1 <= parsed.tokens <= longest:
            raise InputError(f"--tokens is {parsed.tokens}; expected 1 to the {longest} of {name}'s context_length")
    if parsed.peak is not None and not 0 < parsed.peak < math.inf:
        raise InputError(f"--peak is {parsed.peak}; expected a positive number of TFLOP/s")
    for path in (parsed.json, parsed.markdown):
        if path:
            check_writable(path)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(f"{device_name('cuda')} has no bfloat16, in which most contenders compute; use another GPU")


def run(parsed: argparse.Namespace) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check(parsed, device)
    if device.type == "cpu":
        print("there is no GPU here: this is the CPU, whose times say nothing about GPUs")
    given = parsed.peak and parsed.peak * 1e12
    peaks = {precision: given or peak_of(device_name(device.type), precision) for precision in ("fp32", "bf16")}
    results = []
    turns = [(preset, name) for preset in parsed.presets for name in parsed.contenders]
    for preset, name in tqdm(turns, unit="contender", leave=False, dynamic_ncols=True):
        tokens = parsed.tokens or MODELS[preset].context_length
        setting = Setting(preset, replace(MODELS[preset], drop_rate=0.0, context_length=tokens), tokens, device)
        results.append(measured(setting, name, parsed))
    lines, about = table(results, peaks), facts(parsed, device, peaks)
    print(as_text(lines))
    for path, text in ((parsed.json, as_json(results, about)), (parsed.markdown, markdown_page(lines, about))):
        if path:
            write_text(path, text)
            print(f"wrote {path}")
    return 0 if all(result.timing for result in results) else NOT_TIMED


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        return run(arguments_of(arguments))
    except InputError as error:
        print(f"gpu_benchmark: error: {error}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
