"""The training loop: steps, evaluations, samples, checkpoints, and stopping between two steps.

It does not touch arrays. The backend of the run computes, and the progress shows a person what happens.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from numpygpt.training.journal import FILE_NAME as LOG_NAME
from numpygpt.training.journal import Journal
from numpygpt.training.options import Options
from numpygpt.training.progress import Progress
from numpygpt.training.run import TrainingRun

Result = TypeVar("Result")

#: The signals that ask a run to stop.
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Every:
    """After which steps something is done: after step `first`, and then after every `period` steps.

    period       0: after no step
    at_the_end   whether it is also done after the last step
    """

    period: int
    first: int
    at_the_end: bool = False

    def is_due(self, run: TrainingRun) -> bool:
        """Whether it is done after the step at which the run stands."""
        if not self.period:
            return False
        since = run.step - self.first
        return (since >= 0 and since % self.period == 0) or (self.at_the_end and run.finished)


@dataclass(frozen=True)
class Plan:
    """After which steps the loop evaluates, samples and saves.

    evaluations, samples, saves   the steps; the end of the loop saves a checkpoint in any case
    keep_best                     whether the checkpoint with the lowest validation loss is kept beside the last one
    """

    evaluations: Every
    samples: Every
    saves: Every
    keep_best: bool = True

    @classmethod
    def of(cls, options: Options) -> "Plan":
        """The plan of `numpygpt train`, which evaluates the model once before it has learned anything."""
        return cls(
            evaluations=Every(options.eval_every, first=0, at_the_end=True),
            samples=Every(options.sample_every, first=options.sample_every, at_the_end=True),
            saves=Every(options.save_every, first=options.save_every),
        )


def train(run: TrainingRun, plan: Plan, progress: Progress) -> Path:
    """Take the run to its last step, or stop it at Ctrl-C, and save it; returns the path of the checkpoint.

    Raises InputError, and does not save, if a loss is not finite, if a gradient that is clipped is not, and if weights
    are not finite when they are to be saved.
    """
    journal = Journal()
    with (
        stop_between_steps() as stop,
        run.begun_writing_is_ended(),
        progress.of(run),
        journal.of(run) if run.team.is_first else nullcontext(),
    ):
        if run.step == 0 and not run.history and plan.evaluations.is_due(run):
            _evaluate(run, plan, progress)
        while not run.finished and not run.team.any(stop.requested):
            taken, seconds = _timed(run.train_step)
            progress.stepped(run, taken, seconds)
            if plan.evaluations.is_due(run):
                _evaluate(run, plan, progress)
            journal.stepped(run, taken, seconds)
            if plan.samples.is_due(run):
                progress.sampled(run, *_timed(run.sample))
            if plan.saves.is_due(run) and not run.finished:
                progress.saving(run)
                run.save_on_the_way()
        progress.saving(run)
        path = run.save()
        run.wait()
        if journal.failure:
            progress.write(f"the log {run.directory / LOG_NAME} was not written to its end: {journal.failure}")
        return path


def _evaluate(run: TrainingRun, plan: Plan, progress: Progress) -> None:
    progress.evaluated(run, *_timed(run.evaluate))
    if plan.keep_best and run.best_step == run.step:
        run.save_best()


def _timed(call: Callable[[], Result]) -> tuple[Result, float]:
    """What the call returns, and the seconds that it took."""
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


class StopRequest:
    """Whether Ctrl-C, SIGTERM or a closed terminal has asked the run to stop after the current step."""

    requested = False


@contextmanager
def stop_between_steps(signals: Sequence[int] = ASKING) -> Iterator[StopRequest]:
    """Within the `with`, the first Ctrl-C (or SIGTERM) only sets `requested`, so that the current step is finished.

    signals   which of the three do so; the others are left as they are

    A second one interrupts. A terminal that is closed (SIGHUP) asks as well, and may ask twice, so a second SIGHUP does
    not interrupt; if it is ignored, as under nohup, it stays so. A signal that is not handled in Python is left as it
    is, because its handler could not be restored. In another thread than the main one, which alone may handle signals,
    nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: Any) -> None:
        request.requested = True
        if number != signal.SIGHUP:
            signal.signal(number, previous[number])

    handlers = {number: signal.getsignal(number) for number in signals}
    if handlers.get(signal.SIGHUP) == signal.SIG_IGN:
        del handlers[signal.SIGHUP]
    previous: dict[int, Any] = {number: handler for number, handler in handlers.items() if handler is not None}
    for number in previous:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
