"""What a person sees of a training run: a bar with rate, remaining time and losses, and lines of losses and samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpygpt.training.backend import Notes
from numpygpt.training.run import Evaluation, TrainingRun
from numpygpt.training.step import StepTaken


class Progress:
    """Shows a run. The training loop calls a method for each thing that it does; a subclass can show it otherwise."""

    def __init__(self) -> None:
        from tqdm import tqdm  # here, so that a missing package is found before the training

        self._new_bar: Any = tqdm
        self._losses: dict[str, str] = {}

    @contextmanager
    def of(self, run: TrainingRun) -> Iterator[None]:
        """Within the `with`, show the bar of the run."""
        a_step, unit = (run.tokens_per_step, "token") if run.options.counts_tokens else (1, "step")
        self._of_a_step = a_step
        with self._new_bar(
            total=run.options.steps * a_step, initial=run.step * a_step, unit=unit, unit_scale=True, dynamic_ncols=True
        ) as self._bar:
            yield

    def write(self, line: str) -> None:
        """Print a line above the bar."""
        self._new_bar.write(line)

    def stepped(self, run: TrainingRun, taken: StepTaken, seconds: float) -> None:
        """A step was taken, which took so many seconds; the backend's notes on it are written."""
        if isinstance(run.backend, Notes):
            for note in run.backend.notes:
                self.write(note)
            run.backend.notes.clear()
        self._bar.update(self._of_a_step)
        self.show(run, loss=taken.loss, **taken.facts)

    def evaluated(self, run: TrainingRun, evaluation: Evaluation, seconds: float) -> None:
        """The run was evaluated, which took so many seconds."""
        self.show(run, val=evaluation.val_loss)
        self.write(
            f"step {evaluation.step}: training loss {evaluation.train_loss:.3f}, "
            f"validation loss {evaluation.val_loss:.3f} {run.options.loss_unit}"
            + "".join(f", {name.removeprefix('val_')} {value:.3f}" for name, value in run.appraised.items())
        )

    def sampled(self, run: TrainingRun, text: str, seconds: float) -> None:
        """The model wrote this text, which took so many seconds."""
        self.write(f"step {run.step}: {text}")

    def saving(self, run: TrainingRun) -> None:
        """A checkpoint is about to be written."""

    def show(self, run: TrainingRun, **losses: float) -> None:
        """Show on the bar the step and these losses by name; the others stay as they were."""
        self._losses |= {name: f"{loss:.3f}" for name, loss in losses.items()}
        self._bar.set_description(f"step {run.step}/{run.options.steps}", refresh=False)
        self._bar.set_postfix(self._losses)
