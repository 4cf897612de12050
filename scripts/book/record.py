"""What a training run leaves for comparison, in DIR/losses.json: losses, samples, time and memory."""

import json
import os
import resource
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from book.report import DIFFERENT
from numpygpt.checkpoint import replacing
from numpygpt.errors import InputError

FILE_NAME = "losses.json"
LOSSES = ("train_loss", "val_loss")


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

    @classmethod
    def load(cls, directory: Path) -> "Record":
        """Of an earlier run in that folder."""
        try:
            return cls(**json.loads((directory / FILE_NAME).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{directory} holds no readable {FILE_NAME} ({error}); expected the folder of a run of this script"
            ) from error

    def save(self, directory: Path) -> Path:
        """Write it in place of an earlier one; returns its path."""
        path = directory / FILE_NAME
        directory.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path


def peak_memory_bytes() -> int:
    """The most that this process has held in memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def print_costs(record: Record) -> None:
    """Time and memory of a run."""
    step = statistics.median(record.step_seconds)
    masks = f", of which the dropout masks are {record.mask_seconds / step:.0%}" if record.mask_seconds else ""
    tqdm.write(
        f"{record.backend}, OMP_NUM_THREADS {record.threads}: initialization {record.initialization_seconds:.1f} s; "
        f"a step {step:.2f} s (median){masks}; {len(record.step_seconds)} steps with evaluations and samples "
        f"{record.training_seconds:.0f} s; peak memory {record.peak_memory_bytes / 2**30:.2f} GiB"
    )


def compare(first: Record, second: Record) -> int:
    """Print how far two runs lie apart; returns the exit status."""
    runs = (first, second)
    for run in runs:
        print_costs(run)
    train_losses, val_losses = ([[entry[loss] for entry in run.evaluations] for run in runs] for loss in LOSSES)
    for what, (ours, theirs) in {
        "losses of the steps": [run.step_losses for run in runs],
        "training losses": train_losses,
        "validation losses": val_losses,
    }.items():
        largest = max((abs(a - b) for a, b in zip(ours, theirs, strict=False)), default=0.0)
        tqdm.write(f"{what}: {len(ours)} and {len(theirs)}, largest difference {largest:.1e}")
    steps = [statistics.median(run.step_seconds) for run in runs]
    tqdm.write(
        f"{first.backend} / {second.backend}: a step {steps[0] / steps[1]:.2f}, "
        f"the whole training {first.training_seconds / second.training_seconds:.2f}, "
        f"peak memory {first.peak_memory_bytes / second.peak_memory_bytes:.2f}"
    )
    ours, theirs = [[f"{entry[loss]:.3f}" for loss in LOSSES for entry in run.evaluations] for run in runs]
    same = ours == theirs and first.samples == second.samples
    tqdm.write(f"printed losses and samples: {'the same' if same else 'DIFFERENT'}")
    return 0 if same else DIFFERENT
