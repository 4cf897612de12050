"""DIR/log.jsonl: a line of JSON for each step of a run, for programs that draw or compare runs.

    {"step": 150, "loss": 2.31, "lr": 0.0037, "grad_norm": 0.82, "tokens_per_second": 41250.3, "val_loss": 2.4}

    step                how many steps are done
    loss                of the step's batch before the step, in nats a token
    lr                  the learning rate of the step
    grad_norm           the norm of all its gradients together, before clipping; null for a step that was left out
                        because they overflowed
    tokens_per_second   its tokens over its time, without evaluations, samples and saves
    val_loss            the validation loss after it, if it was evaluated then

A run that learns from pairs also has "val_accuracy" and "val_margin" (`numpygpt.tuning.appraisal`) beside "val_loss".
A step that learns from rewards also has the mean "reward" and "length" of its answers, and "kl", how far the model is
from the reference, in nats a token.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from numpygpt.files import replacing
from numpygpt.training.run import TrainingRun
from numpygpt.training.step import StepTaken

FILE_NAME = "log.jsonl"


class Journal:
    """Writes the log of a run.

    The log is not worth a training: if a line cannot be written, `failure` says why, and no line follows.
    """

    def __init__(self) -> None:
        self.failure = ""
        self._file: IO[str] | None = None

    @contextmanager
    def of(self, run: TrainingRun) -> Iterator[None]:
        """Within the `with`, the log of this run is open.

        A run that is resumed keeps the lines up to its step. Later ones are of steps that are taken again.
        """
        path = run.directory / FILE_NAME
        with self._forgiven():
            _keep_until(path, run.step)
            self._file = path.open("a", encoding="utf-8")
        try:
            yield
        finally:
            self._close()

    def stepped(self, run: TrainingRun, taken: StepTaken, seconds: float) -> None:
        """Write the line of a step that was just taken, and evaluated if that was due."""
        if self._file is None:
            return
        line = {
            "step": run.step,
            "loss": taken.loss,
            "lr": run.options.learning_rate(run.step - 1),
            "grad_norm": taken.grad_norm if math.isfinite(taken.grad_norm) else None,
            "tokens_per_second": (run.tokens_per_step if taken.tokens is None else taken.tokens) / seconds,
            **taken.facts,
        }
        if run.history and run.history[-1].step == run.step:
            line |= {"val_loss": run.history[-1].val_loss, **run.appraised}
        with self._forgiven():
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = error.strerror or str(error)
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # what it still holds is the line that could not be written
                file.close()


def _keep_until(path: Path, step: int) -> None:
    """Remove the lines of later steps, and whatever is no line of a step. OSError if that fails."""
    if not path.exists():
        return
    with (
        replacing(path) as unfinished,
        path.open(encoding="utf-8", errors="replace") as log,
        unfinished.open("w", encoding="utf-8") as kept,
    ):
        kept.writelines(line for line in log if _is_of_a_step(line, step))


def _is_of_a_step(line: str, last: int) -> bool:
    """Whether it is the whole line of a step up to the last one. A kill may have cut a line."""
    try:
        step: Any = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    return isinstance(step, int) and step <= last and line.endswith("\n")
