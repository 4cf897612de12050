"""The record of a training run, for comparison, in DIR/losses.json: losses, samples, figures, time and memory."""

import json
import os
import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from book.report import DIFFERENT
from numpygpt.errors import InputError
from numpygpt.files import replacing

FILE_NAME = "losses.json"
LOSSES = ("train_loss", "val_loss")

#: The goals of NumPy's run: time and peak memory as multiples of PyTorch's, and masks as a share of a training step.
MOST_TIME = 1.3
MOST_MEMORY = 1.0
MOST_TIME_FOR_MASKS = 0.15


@dataclass
class Record:
    """What DIR/losses.json holds, so that two runs can be compared."""

    backend: str
    initialization_seconds: float
    threads: str = os.environ.get("OMP_NUM_THREADS", "all")
    step_losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    mask_seconds: float | None = None
    training_seconds: float = 0.0
    peak_memory_bytes: int = 0
    samples: list[str] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: Path) -> "Record":
        """The record of an earlier run in that folder. InputError if there is none, or if it has no training step."""
        try:
            record = cls(**json.loads((directory / FILE_NAME).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{directory} holds no readable {FILE_NAME} ({error}); expected the folder of a run of this script"
            ) from error
        if not record.step_seconds:
            raise InputError(f"{directory / FILE_NAME} tells of no training step; expected that of a training run")
        return record

    def save(self, directory: Path) -> Path:
        """Write the record in the place of an earlier one; returns its path."""
        path = directory / FILE_NAME
        directory.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path


def peak_memory_bytes() -> int:
    """The most bytes that this process has had in memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def print_costs(record: Record) -> None:
    """Print the time and the memory of a run."""
    step = statistics.median(record.step_seconds)
    masks = f", of which the dropout masks are {record.mask_seconds / step:.0%}" if record.mask_seconds else ""
    tqdm.write(
        f"{record.backend}, OMP_NUM_THREADS {record.threads}: initialization {record.initialization_seconds:.1f} s; "
        f"a step {step:.2f} s (median){masks}; {len(record.step_seconds)} steps with evaluations and samples "
        f"{record.training_seconds:.0f} s; peak memory {record.peak_memory_bytes / 2**30:.2f} GiB"
    )


def compare(runs: Sequence[Record]) -> int:
    """Print how far NumPy's run and PyTorch's differ, and whether the goals are reached; returns the exit status."""
    ours, theirs = sorted(runs, key=lambda run: run.backend)
    if (ours.backend, theirs.backend) != ("numpy", "torch"):
        raise InputError(f"the runs are by {ours.backend} and {theirs.backend}; expected one by numpy and one by torch")
    for run in (ours, theirs):
        print_costs(run)
    print_differences(ours, theirs)
    same = printed(ours) == printed(theirs)
    tqdm.write(f"printed losses, samples and exact figures: {'the same' if same else 'DIFFERENT'}")
    if ours.threads != theirs.threads:
        tqdm.write("the runs had other numbers of threads: their times say nothing of each other")
    reached = [print_goal(what, value, most) for what, value, most in goals(ours, theirs)]
    return 0 if same and all(reached) else DIFFERENT


def print_differences(ours: Record, theirs: Record) -> None:
    """Print the largest difference of each kind of loss, and the figures that are not the same."""
    for what, our_losses, their_losses in (
        ("losses of the steps", ours.step_losses, theirs.step_losses),
        *((f"evaluations' {loss}", evaluated(ours, loss), evaluated(theirs, loss)) for loss in LOSSES),
    ):
        largest = max((abs(a - b) for a, b in zip(our_losses, their_losses, strict=False)), default=0.0)
        tqdm.write(f"{what}: {len(our_losses)} and {len(their_losses)}, largest difference {largest:.1e}")
    for what in ours.figures | theirs.figures:
        figures = [run.figures.get(what, "none") for run in (ours, theirs)]
        if figures[0] != figures[1]:
            tqdm.write(f"{what} DIFFERS\n  numpy: {figures[0]}\n  torch: {figures[1]}")


def evaluated(run: Record, loss: str) -> list[float]:
    """One of LOSSES at every evaluation."""
    return [evaluation[loss] for evaluation in run.evaluations]


def printed(run: Record) -> tuple[list[str], list[str], dict[str, str]]:
    """What a run prints: losses with the digits that are printed, samples, and figures."""
    return [f"{value:.3f}" for loss in LOSSES for value in evaluated(run, loss)], run.samples, run.figures


def goals(ours: Record, theirs: Record) -> list[tuple[str, float, float]]:
    """The goals, as a list of (what, its value, the largest value that reaches the goal)."""
    found = [
        ("time of the training, numpy / torch", ours.training_seconds / theirs.training_seconds, MOST_TIME),
        ("peak memory, numpy / torch", ours.peak_memory_bytes / theirs.peak_memory_bytes, MOST_MEMORY),
    ]
    if ours.mask_seconds is not None:
        share = ours.mask_seconds / statistics.median(ours.step_seconds)
        found.append(("dropout masks' share of a step in numpy", share, MOST_TIME_FOR_MASKS))
    return found


def print_goal(what: str, value: float, most: float) -> bool:
    """Print a goal; returns whether it is reached."""
    reached = value <= most
    tqdm.write(f"{what}: {value:.2f}, wanted at most {most:g}: {'reached' if reached else 'MISSED'}")
    return reached
