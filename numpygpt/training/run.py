"""A training run: how far it has come, and what it saves.

    DIR/checkpoint.safetensors        the run as it was saved last, which is after its last step if it has ended
    DIR/earlier/step-....safetensors  the run as it was saved before that, if more than one checkpoint is kept
    DIR/best/checkpoint.safetensors   the run as it was when its validation loss was lowest
    DIR/losses.png                    the loss curves

Every checkpoint has everything that the next step depends on: the weights, the optimizer, the random generator and the
position in the text (the backend's sections), and the options, the step and the history (the section "run"). So a run
that is stopped and resumed gives the same, bit for bit, as a run that never stopped.
"""

import math
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from numpygpt.data.texts import split_text
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.errors import InputError
from numpygpt.files import LOCK_NAME, remove_abandoned
from numpygpt.formats.checkpoint import FILE_NAME, read_checkpoint, write_checkpoint
from numpygpt.formats.kinds import refuse_other_models
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import saved_config
from numpygpt.pictures.losses import plot_losses
from numpygpt.sections import Section, named_in_errors, value_of
from numpygpt.training import earlier
from numpygpt.training.backend import Backend, Task
from numpygpt.training.options import Options

#: The section of a checkpoint that this module writes and reads.
SECTION = "run"
#: The folder of the checkpoint with the lowest validation loss, within the folder of the run.
BEST = "best"
TRAIN_SHARE = 0.9


@dataclass(frozen=True)
class Evaluation:
    """Losses in nats a token after `step` optimizer steps."""

    step: int
    epochs_seen: float
    tokens_seen: int
    train_loss: float
    val_loss: float

    @classmethod
    def of(cls, saved: Any) -> "Evaluation":
        """The evaluation that was saved as these values. InputError for anything else."""
        if not isinstance(saved, Mapping):
            raise InputError(f"an evaluation is {saved!r:.80}; expected a dict")
        types: dict[str, Any] = {field.name: field.type for field in fields(cls)}
        return cls(**{name: kind(value_of(saved, name, kind)) for name, kind in types.items()})


class TrainingRun:
    """A run at some step. `start` begins one, and `resume` continues one from its checkpoint.

    options       the settled options (`Options.settled`)
    config        the model's configuration
    directory     the folder of the run
    backend       what computes; it has the model, the optimizer, the batches and the random draws
    text_sha256   the SHA-256 of the text, in UTF-8
    step          how many optimizer steps are done
    tokens_seen   how many tokens these steps were trained on
    history       the evaluations so far
    saved_step    the step of the checkpoint in the folder; None as long as this run has none there
    """

    def __init__(
        self, options: Options, config: GPTConfig, directory: Path, backend: Backend, text_sha256: str
    ) -> None:
        self.options, self.config, self.directory = options.settled(), config, directory
        self.backend, self.text_sha256 = backend, text_sha256
        self.step = self.tokens_seen = 0
        self.history: list[Evaluation] = []
        self.saved_step: int | None = None
        self._has_written = False

    @classmethod
    def start(
        cls, backend: type[Backend], options: Options, config: GPTConfig, directory: Path, *, overwrite: bool = False
    ) -> "TrainingRun":
        """A new run, computed by this kind of backend.

        Raises InputError if the directory already holds a checkpoint that may not be overwritten, and if no checkpoint
        can be written there. It is better to find this out before the training than after it.
        """
        refuse_another_run(directory, overwrite=overwrite)
        text = options.read_text()
        run = cls(options, config, directory, backend.start(_task(options, config, text)), _sha256(text))
        make_writable(directory)
        return run

    @classmethod
    def resume(cls, backend: type[Backend], directory: Path, **changes: Any) -> "TrainingRun":
        """The run whose checkpoint is in `directory`, at the step of that checkpoint, computed by this kind of backend.

        The checkpoint itself may be named, too.

        changes   options to replace: for example `steps`, to train for longer

        Raises InputError if there is no checkpoint of a run, if another run keeps its best one in that folder, if the
        text is not the one that the run learns from, and for fewer steps than it has done.
        """
        saved = read_checkpoint(directory)
        if saved.path.name != FILE_NAME:
            raise InputError(
                f"{saved.path} is not the last checkpoint of a run, so no run goes on from it; copy it to a new folder "
                f"as {FILE_NAME}, and resume that folder"
            )
        directory = saved.path.parent
        refuse_the_best_folder(directory)
        if SECTION not in saved:
            raise InputError(f"the checkpoint {saved.path} holds a model but no training run; start one with --out")
        state = saved.values(SECTION)
        with named_in_errors(saved):
            begun = Options.of(value_of(state, "options", dict)).settled()
            step, tokens_seen = (_count_of(state, name) for name in ("step", "tokens_seen"))
            history = [Evaluation.of(entry) for entry in value_of(state, "history", list)]
            text_sha256 = value_of(state, "text_sha256", str)
        options = Options.of({**begun.to_dict(), **changes})
        if options.steps < step:
            raise InputError(
                f"steps is {options.steps}, but the run in {directory} has done {step}; expected at least as many"
            )
        task = _task(options, saved_config(saved), _same_text(options, directory, text_sha256))
        run = cls(options, task.config, directory, backend.load(task, saved), text_sha256)
        run.step, run.tokens_seen, run.history, run.saved_step = step, tokens_seen, history, step
        run._has_written = True
        return run

    @property
    def tokens_per_step(self) -> int:
        """How many tokens one optimizer step is trained on."""
        return self.options.accumulate * self.options.batch_size * self.config.context_length

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.options.steps

    @property
    def best_step(self) -> int | None:
        """The step with the lowest validation loss, or None. Step 0, the untrained model, does not count."""
        trained = [entry for entry in self.history if entry.step]
        return min(trained, key=lambda entry: entry.val_loss).step if trained else None

    def train_step(self) -> float:
        """Take one optimizer step; returns its loss, in nats a token.

        Raises InputError, and does not take the step, if the backend finds that something is not finite.
        """
        try:
            loss = self.backend.step(self.options.learning_rate(self.step))
        except InputError as error:
            raise InputError(f"{error}; {self._way_back()}") from error
        self.step += 1
        self.tokens_seen += self.tokens_per_step
        return loss

    def evaluate(self) -> Evaluation:
        """The losses of the model as it is now; they are appended to the history.

        Raises InputError, and appends nothing, if one of them is not finite.
        """
        train_loss, val_loss = self.backend.evaluate()
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise self._diverged(f"the losses are {train_loss} and {val_loss}")
        epochs = self.step * self.options.accumulate / self.backend.batches_in_an_epoch()
        self.history.append(Evaluation(self.step, epochs, self.tokens_seen, train_loss, val_loss))
        return self.history[-1]

    def sample(self) -> str:
        """The likeliest continuation of the options' prompt."""
        return self.backend.sample(self.options.sample_prompt)

    def save(self) -> Path:
        """Write the checkpoint in the place of the last one; returns its path.

        If the options say so, the last one is kept among the earlier ones, and the oldest of these goes.

        Raises InputError, and leaves the last one as it was, if the weights or their loss are not finite: nobody could
        go on from such weights.
        """
        evaluated_now = bool(self.history) and self.history[-1].step == self.step
        if not evaluated_now and not math.isfinite(loss := self.backend.probe()):
            raise self._diverged(f"the loss is {loss}")
        path = self._write(self.directory, self._keep_last)
        self.saved_step = self.step
        earlier.prune(self.directory, self.step, self.options.keep - 1)
        remove_abandoned(self.directory / BEST)
        return path

    def save_best(self) -> Path:
        """Write the run as the best so far, beside its last checkpoint; returns the path."""
        if not self._has_written and (self.directory / FILE_NAME).exists():
            self.save()  # first, because the last checkpoint is of another run until then, and this is not its best
        return self._write(self.directory / BEST)

    @property
    def earlier_checkpoints(self) -> list[Path]:
        """The checkpoints that were saved before the last one and are kept, by step."""
        return [earlier.path_of(self.directory, step) for step in earlier.steps(self.directory)]

    def plot(self) -> Path:
        """Draw the loss curves so far, in losses.png beside the checkpoint; returns the path."""
        path = self.directory / "losses.png"
        plot_losses(
            [entry.epochs_seen for entry in self.history],
            [entry.tokens_seen for entry in self.history],
            [entry.train_loss for entry in self.history],
            [entry.val_loss for entry in self.history],
            path,
        )
        return path

    def _write(self, directory: Path, before_replacing: Callable[[], object] | None = None) -> Path:
        if not self._has_written:
            before_replacing = self._remove_the_run_before
        try:
            path = write_checkpoint(directory, {**self.backend.state(), SECTION: self._section()}, before_replacing)
        except InputError as error:
            raise (self._diverged("the run cannot be saved") if self._not_finite() else error) from error
        self._has_written = True
        return path

    def _keep_last(self) -> None:
        if self.options.keep > 1 and self.saved_step is not None and self.saved_step != self.step:
            earlier.keep(self.directory, self.saved_step)

    def _remove_the_run_before(self) -> None:
        """Remove the best and the earlier checkpoints of another run, whose last one is about to be replaced."""
        (self.directory / BEST / FILE_NAME).unlink(missing_ok=True)
        earlier.remove_all(self.directory)

    def _section(self) -> Section:
        values = {
            "options": self.options.to_dict(),
            "text_sha256": self.text_sha256,
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "history": [asdict(evaluation) for evaluation in self.history],
        }
        return Section(values, {})

    # A run that has diverged

    def _diverged(self, reason: str) -> InputError:
        bad = self._not_finite()
        arrays = f", and values are not finite in {', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}" if bad else ""
        return InputError(f"after step {self.step} {reason}{arrays}; {self._way_back()}")

    def _not_finite(self) -> list[str]:
        return [
            name
            for section in self.backend.state().values()
            for name, array in section.arrays.items()
            if not np.isfinite(array).all()
        ]

    def _way_back(self) -> str:
        lower = f"--lr {self.options.lr / 10:g}"
        if not self._has_written:
            return f"nothing was saved: start again with a lower learning rate, such as {lower}"
        last = self.saved_step is not None
        step = self.saved_step if last else self.best_step
        command = shlex.join(_resume(self.directory)) if last else _resume_a_copy_of_the_best(self.directory)
        return (
            f"the checkpoint of step {step} is as it was: go on from there with a lower learning rate, such as "
            f"{command} {lower}"
        )


def make_writable(directory: Path) -> None:
    """Make the folder if it is not there. InputError if files cannot be written to it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(f"cannot write to the folder {directory}: {error.strerror}; choose another") from error


def refuse_another_run(directory: Path, *, overwrite: bool) -> None:
    """Raise InputError if a new run cannot have the folder.

    It cannot if the folder holds a checkpoint that may not be overwritten, or a model of another program's, if another
    run keeps its best checkpoint there, or if the folder cannot be searched for these.
    """
    try:
        is_there = (directory / FILE_NAME).exists()
    except OSError as error:
        raise InputError(f"cannot write to the folder {directory}: {error.strerror}; choose another") from error
    refuse_the_best_folder(directory)
    if is_there and not overwrite:
        raise InputError(
            f"{directory} already holds a checkpoint; continue it with --resume {shlex.quote(str(directory))}, "
            f"replace it with --overwrite, or choose another --out"
        )
    refuse_other_models(directory)


def refuse_the_best_folder(directory: Path) -> None:
    """Raise InputError for the folder in which a run keeps its best checkpoint: that run would replace what is there.

    The folder around it then holds the last checkpoint of the run, or the lock of the process that trains it.
    """
    found = directory if directory.name == BEST else Path(os.path.realpath(directory))
    parent = found.parent
    if found.name == BEST and any((parent / name).exists() for name in (FILE_NAME, LOCK_NAME)):
        raise InputError(
            f"{directory} belongs to the run in {parent}, which replaces what is there; choose another folder, or go "
            f"on from a copy of its best checkpoint: {_resume_a_copy_of_the_best(parent)}"
        )


def _resume(directory: Path) -> list[str]:
    """The words of the command that resumes the run in this folder."""
    return ["numpygpt", "train", "--resume", str(directory)]


def _resume_a_copy_of_the_best(directory: Path) -> str:
    """The commands that go on from the best checkpoint of the run in this folder, in a new folder beside it."""
    copy = directory.parent / f"{BEST}-of-{Path(os.path.realpath(directory)).name}"
    commands = (["mkdir", str(copy)], ["cp", str(directory / BEST / FILE_NAME), str(copy)], _resume(copy))
    return " && ".join(map(shlex.join, commands))


def _task(options: Options, config: GPTConfig, text: str) -> Task:
    tokenizer = get_tokenizer(options.tokenizer, options.vocab)
    if tokenizer.n_vocab > config.vocab_size:
        raise InputError(
            f"tokenizer {options.tokenizer!r} has {tokenizer.n_vocab} tokens, "
            f"but the model's vocab_size is {config.vocab_size}; expected at least as many"
        )
    return Task(options, config, tokenizer, *split_text(text, TRAIN_SHARE))


def _same_text(options: Options, directory: Path, expected_sha256: str) -> str:
    """The text of a run that is resumed. InputError if it cannot be read, or if the run learned from another text."""
    source = ", ".join(options.text) or "the language reference of this Python"
    try:
        text = options.read_text()
    except InputError as error:
        raise InputError(f"{error}; say with --text where the text of the run is now") from error
    if _sha256(text) != expected_sha256:
        raise InputError(
            f"the text ({source}) is not the one that the run in {directory} learned from; "
            f"expected SHA-256 {expected_sha256}, found {_sha256(text)}"
        )
    return text


def _sha256(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _count_of(state: Mapping[str, Any], name: str) -> int:
    count: int = value_of(state, name, int)
    if count < 0:
        raise InputError(f"{name} is {count}; expected 0 or more")
    return count
