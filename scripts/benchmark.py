"""Time numpygpt and its peers, in turn, on the same cores, and show where the time of numpygpt goes.

    python scripts/benchmark.py step                        # a training step of the 124M model, and PyTorch's
    python scripts/benchmark.py step --peers all --tokens 1024 --batch-size 1
    python scripts/benchmark.py step --preset demo          # the model of `make demo`
    python scripts/benchmark.py decode                      # 128 tokens after a prompt of 32
    python scripts/benchmark.py parts                       # a step by part, and the floor that this machine sets
    python scripts/benchmark.py sweep                       # tokens, batch sizes, threads, models: cost against FLOPs

Peers of a step: eager (PyTorch as the book writes it, AdamW with PyTorch's defaults), fused (the same with fused
AdamW), sdpa (with PyTorch's fused attention), compiled (torch.compile and fused AdamW; needs a C++ compiler); and of
our own, numpygpt-math and numpygpt-flash (by default attention is "math" up to 512 tokens and "flash" for more), and
numpygpt-recompute (activations recomputed), numpygpt-lora (an adapter of rank 8 on every projection of the blocks,
which alone is trained) and numpygpt-qlora (the same over NF4). Peers of decoding: huggingface (generate, with its
cache), book (its loop without one), numpygpt-int8 and numpygpt-nf4 (quantized matrices).

Every contender is a process of its own with the same number of threads, and waits without computing while the others
run. They take turns, a round at a time, and the ratio is taken within each round, so that a machine whose speed drifts
favors nobody. The median over the rounds is the result, and the spread shows how noisy the machine was. Each contender
keeps its model while it waits: a step of the 124M model takes 3 to 5 GB.
--out DIR writes the results as JSON and a chart as PNG.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import charts, floor
from bench.contenders import (
    CONTENDERS,
    DECODED_TOKENS,
    MODELS,
    NEW_TOKENS,
    OURS,
    Task,
    check_installed,
    faster_attention,
)
from bench.turns import THREADS, race, spread, work

from numpygpt.commands.model_options import preset_name
from numpygpt.errors import BAD_INPUT, InputError
from numpygpt.model.sizes import training_bytes
from numpygpt.parallel import number_of_threads, use_own_threads
from numpygpt.process import keep_freed_memory

#: The points of the sweep, by the name of the line that they are on. All except the last line are of the 124M model.
SWEEP = {
    "tokens, batch 1": [Task("step", "book-124M", 1, tokens, 2) for tokens in (64, 128, 256, 512, 1024)],
    "batch size, 128 tokens": [Task("step", "book-124M", batch_size, 128, 2) for batch_size in (1, 2, 4, 8)],
    "one thread, 2 x 256 tokens": [Task("step", "book-124M", 2, 256, 1)],
    "model, 2 x 256 tokens": [Task("step", preset, 2, 256, 2) for preset in ("demo", "10M", "50M", "book-124M")],
}


def compare(task: Task, parsed: argparse.Namespace) -> dict[str, Any]:
    peers = [name for name in CONTENDERS[task.kind] if name != OURS] if "all" in parsed.peers else parsed.peers
    check_installed(peers)
    report = {**vars(task), "model": task.config.to_dict(), "machine": floor.machine()}
    return report | {"results": race(task, [OURS, *peers], parsed.rounds, parsed.warm_up)}


def print_comparison(report: dict[str, Any]) -> None:
    results = report["results"]
    print(
        f"{report['kind']} of {report['preset']}, {charts.size_of(report)}, {report['threads']} threads, "
        f"median (smallest to largest) of {len(results[OURS]['seconds'])} rounds"
    )
    print(f"{'':<20}{'seconds':>26}{'numpygpt / peer':>28}{'peak MiB':>12}{'ours / peer':>13}")
    for name, result in results.items():
        print(
            f"{name:<20}{spread(result['seconds']):>26}{spread(result['ratios']):>28}{result['peak_mib']:>12,.0f}"
            f"{results[OURS]['peak_mib'] / result['peak_mib']:>13.2f}"
        )
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))


def step(parsed: argparse.Namespace) -> dict[str, Any]:
    task = task_of(parsed)
    report = compare(task, parsed)
    print_comparison(report)
    attention = faster_attention(task.tokens)
    parts = training_bytes(task.config, task.batch_size, task.tokens, attention=attention)
    print(f"predicted peak of our step's arrays (numpygpt info): {parts.peak / 2**20:,.0f} MiB")
    return report


def decode(parsed: argparse.Namespace) -> dict[str, Any]:
    task = task_of(parsed)
    report = compare(task, parsed)
    print_comparison(report)
    for name, result in report["results"].items():
        result["tokens_per_second"] = task.batch_size * NEW_TOKENS / statistics.median(result["seconds"])
        print(f"{name:<20}{result['tokens_per_second']:>8.1f} tokens/s")
    streamed = floor.decoding_bytes(task.config) * NEW_TOKENS / statistics.median(report["results"][OURS]["seconds"])
    report["bytes_per_second"], report["read_rate"] = streamed, floor.read_rate()
    print(
        f"weights streamed at {streamed / 1e9:.1f} GB/s of this machine's {report['read_rate'] / 1e9:.1f}: "
        f"{streamed / report['read_rate']:.2f}"
    )
    return report


def parts(parsed: argparse.Namespace) -> dict[str, Any]:
    keep_freed_memory()
    use_own_threads()
    task = task_of(parsed)
    report = {**vars(task), "machine": floor.machine()}
    seconds = floor.profile(task, parsed.rounds, parsed.attention or faster_attention(task.tokens))
    rates = {"products": floor.product_rate(), "copies": floor.copy_rate()}
    flops = floor.training_flops(task.config, task.batch_size, task.tokens)
    moved = floor.optimizer_bytes(task.config)
    least = flops / rates["products"] + moved / rates["copies"]
    print(f"seconds of a step, {task.batch_size} x {task.tokens} tokens, median of {parsed.rounds}:")
    for part, value in seconds.items():
        print(f"{part:<20}{value:>9.3f}")
    print(
        f"this machine: products {rates['products'] / 1e9:.0f} GFLOP/s, memory {rates['copies'] / 1e9:.1f} GB/s "
        "(read + written)"
    )
    print(
        f"floor: {flops / 1e9:.0f} GFLOP {flops / rates['products']:.3f} s + the optimizer's {moved / 1e9:.1f} GB "
        f"{moved / rates['copies']:.3f} s = {least:.3f} s; the step takes {seconds['step'] / least:.2f} times that"
    )
    share = flops / rates["products"] / seconds["step"]
    print(f"share of the product rate over the whole step: {share:.2f}")
    return report | {"seconds": seconds, "rates": rates, "floor": least, "share": share}


def sweep(parsed: argparse.Namespace) -> dict[str, Any]:
    check_installed(["eager"])
    machine, points = floor.machine(), []
    for line, tasks in SWEEP.items():
        for task in tasks:
            results = race(task, [OURS, "eager"], parsed.rounds, parsed.warm_up)
            flops = floor.training_flops(task.config, task.batch_size, task.tokens)
            points.append({**vars(task), "line": line, "flops": flops, "results": results})
            print(
                f"{line:<28}{task.preset:<12}{task.batch_size:>3} x {task.tokens:<6}{task.threads} threads "
                f"{flops / 1e9:>8.1f} GFLOP  {spread(results[OURS]['seconds'])} s, "
                f"numpygpt / eager {spread(results['eager']['ratios'], 2)}"
            )
    return {"kind": "sweep", "machine": machine, "points": points}


def task_of(parsed: argparse.Namespace) -> Task:
    demo, decoded = parsed.preset == "demo", parsed.task == "decode"
    batch_size = parsed.batch_size or (1 if decoded else 16 if demo else 2)
    tokens = DECODED_TOKENS if decoded else parsed.tokens or (MODELS["demo"].context_length if demo else 256)
    return Task(parsed.task, parsed.preset, batch_size, tokens, parsed.threads)


def write(report: dict[str, Any], directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / f"{name}.json"
    data.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {data}")
    draw = {"sweep": charts.draw_sweep, "parts": charts.draw_parts}.get(report.get("kind", ""), charts.draw_comparison)
    print(f"wrote {draw(report, directory / f'{name}.png')}")


TASKS = {"step": step, "decode": decode, "parts": parts, "sweep": sweep}


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, parsed. Each task has only the options that it uses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name in TASKS:
        add = tasks.add_parser(name, usage="%(prog)s [OPTIONS]").add_argument
        add("--rounds", type=int, default=5, help="counted rounds (default: %(default)s)")
        add("--out", type=Path, metavar="DIR", help="write the figures and a chart there")
        if name != "sweep":
            add("--preset", type=preset_name, choices=MODELS, default="book-124M", help="(default: %(default)s)")
            add("--batch-size", type=int, help="(default: 2; demo 16; decode 1)")
            add("--threads", type=int, default=number_of_threads(), help="(default: %(default)s)")
        if name != "parts":
            add("--warm-up", type=int, default=1, help="rounds before, not counted (default: %(default)s)")
        if name in ("step", "parts"):
            add("--tokens", type=int, help="sequence length (default: 256; demo 64)")
        if name in CONTENDERS:
            peers = ["huggingface" if name == "decode" else "eager"]
            names = ("all", *CONTENDERS[name])
            help_line = f"{', '.join(names)} (default: {peers[0]})"
            add("--peers", nargs="+", choices=names, default=peers, metavar="PEER", help=help_line)
    tasks.choices["parts"].add_argument(
        "--attention", choices=("math", "flash"), help="(default: the faster for the length)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], Task(**json.loads(sys.argv[3])))
        return 0
    parsed = arguments_of(arguments)
    if parsed.task != "sweep":
        threads = dict.fromkeys(THREADS, str(parsed.threads))
        if threads.items() - os.environ.items():  # BLAS reads them when NumPy is imported
            os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **threads})
    try:
        report = TASKS[parsed.task](parsed)
    except InputError as error:
        print(f"benchmark: error: {error}", file=sys.stderr)
        return BAD_INPUT
    if parsed.out:
        write(report, parsed.out, file_name(parsed))
    return 0


def file_name(parsed: argparse.Namespace) -> str:
    if parsed.task == "sweep":
        return "sweep"
    size = "" if parsed.task == "decode" else f"-{task_of(parsed).tokens}"
    return f"{parsed.task}-{parsed.preset}{size}"


if __name__ == "__main__":
    sys.exit(main())
