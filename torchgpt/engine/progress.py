"""What a person sees of a run in PyTorch: numpygpt's bar, and every few steps a line of speed and memory.

In the processes that are not the first of their team nothing is shown.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from numpygpt.errors import InputError
from numpygpt.model.flops import peak_of, utilization
from numpygpt.training.progress import Progress
from numpygpt.training.run import Evaluation, TrainingRun
from numpygpt.training.step import StepTaken
from torchgpt.engine.backend import TorchBackend
from torchgpt.engine.device import used_memory

EVENTS = "tensorboard"


class TorchProgress(Progress):
    """Shows a run of a `TorchBackend`. Speeds are of all processes together, memory is of this one."""

    def __init__(self) -> None:
        super().__init__()
        self._tokens, self._seconds = 0, 0.0
        self._events: Any = None

    @contextmanager
    def of(self, run: TrainingRun) -> Iterator[None]:
        """As in `Progress`, with the file of events open, if there is one."""
        with ExitStack() as stack:
            if backend_of(run).settings.tensorboard:
                self._events = stack.enter_context(_events(run.directory / EVENTS, run.step))
            stack.enter_context(super().of(run))
            yield

    def stepped(self, run: TrainingRun, taken: StepTaken, seconds: float) -> None:
        """As in `Progress`, and a line if it is due."""
        super().stepped(run, taken, seconds)
        backend = backend_of(run)
        self._tokens, self._seconds = self._tokens + run.tokens_per_step, self._seconds + seconds
        every = backend.settings.log_every
        if every and (run.step % every == 0 or run.finished):
            speed = self._tokens / self._seconds
            self._tokens, self._seconds = 0, 0.0
            self.write(
                f"step {run.step}: loss {taken.loss:.4f}, {speed:,.0f} tokens/s{_share_of_peak(run, speed)}, "
                f"gradient norm {taken.grad_norm:.3g}, {used_memory(backend.device) / 2**30:.2f} GiB"
            )
            self._told(run, loss=taken.loss, grad_norm=taken.grad_norm, tokens_per_second=speed)

    def evaluated(self, run: TrainingRun, evaluation: Evaluation, seconds: float) -> None:
        """As in `Progress`, and in the events."""
        super().evaluated(run, evaluation, seconds)
        self._told(run, train_loss=evaluation.train_loss, val_loss=evaluation.val_loss)

    def _told(self, run: TrainingRun, **values: float) -> None:
        if self._events is None:
            return
        try:
            for name, value in {**values, "lr": run.options.learning_rate(max(0, run.step - 1))}.items():
                self._events.add_scalar(name, value, run.step)
        except OSError as error:  # events are not worth a training
            self._events = None
            self.write(f"no more events are written to {run.directory / EVENTS}: {error.strerror or error}")


class NoProgress(TorchProgress):
    """Shows nothing."""

    @contextmanager
    def of(self, run: TrainingRun) -> Iterator[None]:
        """Nothing."""
        yield

    def write(self, line: str) -> None:
        """Nothing."""

    def stepped(self, run: TrainingRun, taken: StepTaken, seconds: float) -> None:
        """Nothing, and the notes are dropped."""
        backend_of(run).notes.clear()

    def evaluated(self, run: TrainingRun, evaluation: Evaluation, seconds: float) -> None:
        """Nothing."""

    def sampled(self, run: TrainingRun, text: str, seconds: float) -> None:
        """Nothing."""


def backend_of(run: TrainingRun) -> TorchBackend:
    """The backend of the run, which is PyTorch's."""
    assert isinstance(run.backend, TorchBackend)
    return run.backend


def _share_of_peak(run: TrainingRun, tokens_per_second: float) -> str:
    """The MFU of the run, or nothing where the peak of the device is not known, or how much of the model is trained."""
    backend = backend_of(run)
    if run.maker.command != "train" or backend.device.type != "cuda" or run.options.dtype != "float32":
        return ""
    peak = peak_of(torch.cuda.get_device_name(backend.device), backend.settings.precision or "fp32")
    if peak is None:
        return ""
    share = utilization(run.config, run.config.context_length, tokens_per_second / run.team.size, peak)
    return f" (MFU {share:.1%})"


@contextmanager
def _events(directory: Path, step: int) -> Iterator[Any]:
    """A writer of TensorBoard's events. Those of steps after `step` are of a run that is taken up before them."""
    try:
        writer = event_writer()(str(directory), purge_step=step + 1)
    except OSError as error:
        raise InputError(f"cannot write events to {directory}: {error.strerror}; leave out --tensorboard") from error
    try:
        yield writer
    finally:
        with suppress(OSError):  # what could not be written is lost, and the training is not
            writer.close()


def event_writer() -> Any:
    """PyTorch's class of writers of TensorBoard's events. InputError if the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
    return SummaryWriter
