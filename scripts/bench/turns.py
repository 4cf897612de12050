"""Contenders that take turns. Each is a process of its own, and waits without computing while the others run."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.contenders import OURS, Task, prepared
from numpygpt.parallel import use_own_threads
from numpygpt.process import keep_freed_memory

#: The variables that tell OpenMP, OpenBLAS and MKL how many threads to use.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def work(name: str, task: Task) -> None:
    """What the process of a contender does: for each line on standard input a timed run, and a line of JSON on it."""
    if name.startswith(OURS):
        keep_freed_memory()
        if task.kind == "step":
            use_own_threads()
    else:
        import torch

        torch.set_num_threads(task.threads)
    run = prepared(name, task)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib}), flush=True)


class Worker:
    """The process of a contender, as the process that starts it sees it; it runs `work`."""

    def __init__(self, name: str, task: Task) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.peak_mib = 0.0
        program = Path(__file__).parents[1] / "benchmark.py"
        self.process = subprocess.Popen(
            [sys.executable, program, "work", name, json.dumps(asdict(task))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **dict.fromkeys(THREADS, str(task.threads))},
        )

    def run(self, *, counted: bool) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):  # the process has ended, so there is no line to read
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
        self.process.communicate()


def race(task: Task, names: list[str], rounds: int, warm_up: int) -> dict[str, Any]:
    """Let the contenders take turns; returns what was measured, by contender.

    seconds    the time of each round
    ratios     numpygpt's time over the contender's, round by round, so that a machine whose speed drifts favors nobody
    peak_mib   the peak of the contender's memory, in MiB
    """
    workers = [Worker(name, task) for name in names]
    try:
        for done in tqdm(range(-warm_up, rounds), unit="round", desc=f"{task.batch_size} x {task.tokens} tokens"):
            for worker in workers:
                worker.run(counted=done >= 0)
    finally:
        for worker in workers:
            worker.stop()
    ours = workers[0].seconds
    return {
        worker.name: {
            "seconds": worker.seconds,
            "ratios": [mine / theirs for mine, theirs in zip(ours, worker.seconds, strict=True)],
            "peak_mib": worker.peak_mib,
        }
        for worker in workers
    }


def spread(values: list[float], digits: int = 3) -> str:
    """The median, and the smallest and the largest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
