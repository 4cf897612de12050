"""The benchmark's results as charts."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.contenders import NEW_TOKENS, PROMPT_TOKENS


def size_of(report: dict[str, Any]) -> str:
    """The size of the report's task."""
    if report["kind"] == "decode":
        return f"{report['batch_size']} x {NEW_TOKENS} tokens after {PROMPT_TOKENS}"
    return f"{report['batch_size']} x {report['tokens']} tokens"


def draw_comparison(report: dict[str, Any], path: Path) -> Path:
    """Draw a bar for each contender: the median, with a line from the fastest round to the slowest."""
    results = report["results"]
    figure = Figure(figsize=(7, 0.6 * len(results) + 1.4), layout="constrained")
    axes = figure.subplots()
    seconds = [result["seconds"] for result in results.values()]
    medians = np.median(seconds, axis=1)
    errors = np.abs([medians - np.min(seconds, axis=1), np.max(seconds, axis=1) - medians])
    axes.barh(list(results), medians, xerr=errors, color=["tab:orange", *["tab:blue"] * (len(results) - 1)])
    axes.invert_yaxis()
    axes.set_xlabel("seconds, median and range")
    axes.set_title(f"{report['kind']} of {report['preset']}, {size_of(report)}, {report['threads']} threads")
    figure.savefig(path, dpi=120)
    return path


def draw_parts(report: dict[str, Any], path: Path) -> Path:
    """Draw a bar for each part of the step; the label names the floor."""
    seconds = {part: value for part, value in report["seconds"].items() if part != "step"}
    figure = Figure(figsize=(7, 0.35 * len(seconds) + 1.4), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(seconds), list(seconds.values()))
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds of a step of {report['seconds']['step']:.2f} s; the floor is {report['floor']:.2f} s")
    figure.savefig(path, dpi=120)
    return path


def draw_sweep(report: dict[str, Any], path: Path) -> Path:
    """Draw seconds against FLOPs on logarithmic axes, with a line for each sweep; PyTorch's lines are dashed."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for number, line in enumerate(dict.fromkeys(point["line"] for point in report["points"])):
        points = [point for point in report["points"] if point["line"] == line]
        flops = [point["flops"] for point in points]
        for name, style in (("numpygpt", "o-"), ("eager", "x--")):
            seconds = [np.median(point["results"][name]["seconds"]) for point in points]
            axes.loglog(flops, seconds, style, color=f"C{number}", label=f"{line}: {name}")
    axes.set_xlabel("FLOPs of the step's matrix products")
    axes.set_ylabel("seconds, median")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path
