"""What a person sees of a training run: a bar with rate, remaining time and losses, and lines of losses and samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpygpt.training.run import Evaluation, TrainingRun


class Progress:
    """Told by the training loop of each thing it does. Another way to show a run is a subclass of this one."""

    def __init__(self) -> None:
        from tqdm import tqdm  # here, so that a package that is missing is missed before the training

        self._new_bar: Any = tqdm
        self._losses: dict[str, str] = {}

    @contextmanager
    def of(self, run: TrainingRun) -> Iterator[None]:
        """Show the run's bar as long as it goes on."""
        total = run.options.steps * run.tokens_per_step
        with self._new_bar(
            total=total, initial=run.tokens_seen, unit="token", unit_scale=True, dynamic_ncols=True
        ) as self._bar:
            yield

    def write(self, line: str) -> None:
        """Print a line above the bar."""
        self._new_bar.write(line)

    def stepped(self, run: TrainingRun, loss: float, seconds: float) -> None:
        """A step was taken: its loss in nats a token, and how long it took."""
        self._bar.update(run.tokens_per_step)
        self.show(run, loss=loss)

    def evaluated(self, run: TrainingRun, evaluation: Evaluation, seconds: float) -> None:
        """The run was evaluated, which took so long."""
        self.show(run, val=evaluation.val_loss)
        self.write(
            f"step {evaluation.step}: training loss {evaluation.train_loss:.3f}, "
            f"validation loss {evaluation.val_loss:.3f} nats a token"
        )

    def sampled(self, run: TrainingRun, text: str, seconds: float) -> None:
        """The model wrote this text, which took so long."""
        self.write(f"step {run.step}: {text}")

    def saving(self, run: TrainingRun) -> None:
        """A checkpoint is about to be written."""

    def show(self, run: TrainingRun, **losses: float) -> None:
        """Show the step, these losses and the others as they were, on the bar."""
        self._losses |= {name: f"{loss:.3f}" for name, loss in losses.items()}
        self._bar.set_description(f"step {run.step}/{run.options.steps}", refresh=False)
        self._bar.set_postfix(self._losses)
