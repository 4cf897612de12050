"""The training log of the book's run: what the training loop shows of it, and what it records."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from book import figures
from book.record import Record, peak_memory_bytes
from book.report import Report
from numpygpt.training.book import loss_line
from numpygpt.training.progress import Progress
from numpygpt.training.run import Evaluation, TrainingRun
from numpygpt.training.step import StepTaken


class BookLog(Progress):
    """Shows each line of the log beside the book's own line, and adds losses, samples and times to the record.

    The times are those of steps, evaluations and samples; saving does not count.
    """

    def __init__(self, record: Record, report: Report) -> None:
        super().__init__()
        self.record, self.report = record, report

    @contextmanager
    def of(self, run: TrainingRun) -> Iterator[None]:
        """As in `Progress`, but first show again what an earlier part of the run had shown."""
        epoch = run.backend.batches_in_an_epoch()
        for step in range(1, run.step + 1):
            for evaluation in run.history:
                if evaluation.step == step:
                    self._show_losses(run, evaluation)
            if step % epoch == 0:
                self._show_sample(step // epoch, self.record.samples[step // epoch - 1])
        with super().of(run):
            yield

    def stepped(self, run: TrainingRun, taken: StepTaken, seconds: float) -> None:
        super().stepped(run, taken, seconds)
        self.record.step_losses.append(taken.loss)
        self.record.step_seconds.append(seconds)
        self.record.training_seconds += seconds

    def evaluated(self, run: TrainingRun, evaluation: Evaluation, seconds: float) -> None:
        self.show(run, val=evaluation.val_loss)
        self._show_losses(run, evaluation)
        self.record.training_seconds += seconds

    def sampled(self, run: TrainingRun, text: str, seconds: float) -> None:
        self.record.samples.append(text)
        self._show_sample(len(self.record.samples), text)
        self.record.training_seconds += seconds

    def saving(self, run: TrainingRun) -> None:
        """Write the record. It is written before the checkpoint, so that it has every step up to the checkpoint."""
        self.record.peak_memory_bytes = max(self.record.peak_memory_bytes, peak_memory_bytes())
        self.record.evaluations = [asdict(evaluation) for evaluation in run.history]
        self.record.save(run.directory)

    def _show_losses(self, run: TrainingRun, evaluation: Evaluation) -> None:
        epoch = (evaluation.step - 1) // run.backend.batches_in_an_epoch()
        number = run.history.index(evaluation)
        books = figures.LOSS_LINES[number] if number < len(figures.LOSS_LINES) else None
        line = loss_line(epoch, evaluation.step - 1, evaluation.train_loss, evaluation.val_loss)
        self.report.line(line, books)

    def _show_sample(self, epoch: int, text: str) -> None:
        books = figures.START + figures.SAMPLES[epoch - 1] if epoch <= figures.EPOCHS else None
        self.report.line(text, books)
