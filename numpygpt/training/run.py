"""A training run: how far it has come, and what it saves.

    DIR/checkpoint.safetensors        the run as it was saved last, which is after its last step if it has ended
    DIR/earlier/step-....safetensors  the run as it was saved before that, if more than one checkpoint is kept
    DIR/slices/step-...               the run as its many processes have saved it on the way, if they do
    DIR/best/checkpoint.safetensors   the run as it was when its validation loss was lowest
    DIR/log.jsonl                     a line for each step (`numpygpt.training.journal`)
    DIR/losses.png                    the loss curves

Every checkpoint has everything that the next step depends on: the weights, the optimizer, the random generator and the
position in the text (the backend's sections), and the options, the step and the history (the section "run"). So a run
that is stopped and resumed gives the same, bit for bit, as a run that never stopped.
"""

import math
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numpygpt.data.tokenizer import Encoding, get_tokenizer
from numpygpt.errors import InputError
from numpygpt.files import LOCK_NAME, remove_abandoned
from numpygpt.formats.checkpoint import FILE_NAME, read_checkpoint, write_checkpoint
from numpygpt.formats.kinds import refuse_other_models
from numpygpt.formats.slices import read_slices
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import saved_config
from numpygpt.pictures.losses import plot_losses
from numpygpt.sections import SavedSections, Section, named_in_errors, value_of
from numpygpt.training import earlier, sliced
from numpygpt.training.backend import Appraises, Backend, Maker, Pending, Task, WritesSlices
from numpygpt.training.corpus import Learned
from numpygpt.training.options import Options
from numpygpt.training.step import StepTaken
from numpygpt.training.writer import Writer

#: The section of a checkpoint that this module writes and reads.
SECTION = "run"
#: The folder of the checkpoint with the lowest validation loss, within the folder of the run.
BEST = "best"


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
    text_sha256   the SHA-256 of what it learns from (`numpygpt.training.corpus`)
    maker         what has made the backend
    team          the processes that compute the run; each of them has a TrainingRun, and the first one writes
    step          how many optimizer steps are done
    tokens_seen   how many tokens these steps were trained on
    history       the evaluations so far
    appraised     what else the last evaluation found, by name
    saved_step    the step of the checkpoint in the folder; None as long as this run has none there
    sliced_step   the step of the last checkpoint in slices; None if there is none
    """

    def __init__(self, task: Task, directory: Path, maker: Maker, backend: Backend) -> None:
        self.options, self.config, self.directory = task.options.settled(), task.config, directory
        self.backend, self.text_sha256 = backend, task.corpus.sha256
        self.maker, self.team = maker, maker.team
        self.step = self.tokens_seen = 0
        self.history: list[Evaluation] = []
        self.appraised: Mapping[str, float] = {}
        self.saved_step: int | None = None
        self.sliced_step: int | None = None
        self._pending: tuple[int, Pending] | None = None
        self._has_written = False
        self._writer = Writer(in_background=backend.state_is_a_copy)

    @classmethod
    def start(
        cls, maker: Maker, options: Options, config: GPTConfig, directory: Path, *, overwrite: bool = False
    ) -> "TrainingRun":
        """A new run, computed by a backend of this maker.

        Raises InputError if the directory already holds a checkpoint that may not be overwritten, and if no checkpoint
        can be written there. It is better to find this out before the training than after it.
        """

        def prepared() -> Task:
            refuse_another_run(directory, overwrite=overwrite)
            tokenizer = _tokenizer_of(options, config)
            return Task(options, config, tokenizer, options.read_corpus(tokenizer, config), directory)

        task = maker.team.agree(prepared)  # the machine of a process may lack a file that the others have
        run = cls(task, directory, maker, maker.start(task))
        maker.team.agree(lambda: make_writable(directory))
        return run

    @classmethod
    def resume(cls, maker: Maker, directory: Path, **changes: Any) -> "TrainingRun":
        """The run whose checkpoint is in `directory`, at the step of that checkpoint, by a backend of this maker.

        The checkpoint itself may be named, too.

        changes   options to replace: for example `steps`, to train for longer

        Raises InputError if there is no checkpoint of a run, if another run keeps its best one in that folder, if the
        text is not the one that the run learns from, and for fewer steps than it has done.
        """
        directory = folder_of(directory)
        found = maker.team.agree(lambda: _found_in(directory, changes, maker.options_type))
        run = cls(found.task, directory, maker, maker.load(found.task, found.saved))
        run.step, run.tokens_seen, run.history = found.step, found.tokens_seen, found.history
        if found.saved.path.name == FILE_NAME:
            run.saved_step = run.step
        else:
            run.sliced_step = run.step
        run._has_written = True
        return run

    @property
    def tokens_per_step(self) -> int:
        """How many tokens one optimizer step is trained on."""
        return self.options.accumulate * self.options.batch_size * self.options.window(self.config)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.options.steps

    @property
    def best_step(self) -> int | None:
        """The step with the lowest validation loss, or None. Step 0, the untrained model, does not count."""
        trained = [entry for entry in self.history if entry.step]
        return min(trained, key=lambda entry: entry.val_loss).step if trained else None

    def train_step(self) -> StepTaken:
        """Take one optimizer step.

        Raises InputError, and does not take the step, if the backend finds that something is not finite.
        """
        try:
            taken = self.backend.step(self.options.learning_rate(self.step))
        except InputError as error:
            raise InputError(f"{error}; {self._way_back()}") from error
        self.step += 1
        self.tokens_seen += self.tokens_per_step if taken.tokens is None else taken.tokens
        if self._pending is not None and not self.team.any(not self._pending[1].is_done()):
            self._wait_for_slices()  # all have written, so nobody has to wait
        return taken

    def evaluate(self) -> Evaluation:
        """The losses of the model as it is now; they are appended to the history.

        Raises InputError, and appends nothing, if one of them is not finite.
        """
        train_loss, val_loss = self.backend.evaluate()
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise self._diverged(f"the losses are {train_loss} and {val_loss}")
        epochs = self.step * self.options.accumulate / self.backend.batches_in_an_epoch()
        self.appraised = self.backend.appraise() if isinstance(self.backend, Appraises) else {}
        self.history.append(Evaluation(self.step, epochs, self.tokens_seen, train_loss, val_loss))
        return self.history[-1]

    def sample(self) -> str:
        """The likeliest continuation of the options' prompt."""
        return self.backend.sample(self.options.sample_prompt)

    def save(self) -> Path:
        """Write the checkpoint in the place of the last one; returns its path.

        If the options say so, the last one is kept among the earlier ones, and the oldest of these goes. If the backend
        allows it, steps may go on while it is written, and what goes wrong is raised by the next save or by `wait`.

        Raises InputError, and leaves the last one as it was, if the weights or their loss are not finite: nobody could
        go on from such weights.
        """
        self._refuse_a_diverged_run()
        self._wait_for_slices()
        sections, step = self._sections(), self.step

        def write() -> None:
            self._write(self.directory, sections, lambda: self._keep_last_before(step))
            self.saved_step = step
            earlier.prune(self.directory, step, self.options.keep - 1)
            remove_abandoned(self.directory / BEST)
            sliced.remove_all(self.directory)
            self.sliced_step = None

        self._let_write(write)
        return self.directory / FILE_NAME

    def save_on_the_way(self) -> Path:
        """Save the run at a step that is not its last: in slices, if the backend does so; returns the path.

        Errors as `save`.
        """
        backend = self.backend
        if not (isinstance(backend, WritesSlices) and backend.in_slices):
            return self.save()
        self._refuse_a_diverged_run()
        self._wait_for_slices()
        folder = sliced.path_of(self.directory, self.step)
        self.team.first_does(lambda: make_writable(folder.parent))
        self._pending = self.step, backend.start_slices(folder, {SECTION: self._values()})
        return folder

    def save_best(self) -> Path:
        """Write the run as the best so far, beside its last checkpoint; returns the path. It may go on as in `save`."""
        if self.team.first_does(self._holds_another_run):
            self.save()  # first, because the last checkpoint is of another run until then, and this is not its best
        sections = self._sections()
        self._let_write(lambda: self._write(self.directory / BEST, sections))
        return self.directory / BEST / FILE_NAME

    def wait(self) -> None:
        """Wait until all that was saved is on the disk. Raises InputError if it could not be written."""
        self._wait_for_slices()
        self._or_diverged(self._writer.wait)

    @contextmanager
    def begun_writing_is_ended(self) -> Iterator[None]:
        """Within the `with`, a checkpoint that is being written is written to its end, whatever is raised."""
        try:
            yield
        except BaseException:
            with suppress(InputError):
                self._writer.wait()
            raise

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
            unit=self.options.loss_unit.strip("()"),
        )
        return path

    def _refuse_a_diverged_run(self) -> None:
        """Raise InputError if the loss is not finite. It is computed, unless the run was evaluated at this step."""
        evaluated_now = bool(self.history) and self.history[-1].step == self.step
        if not evaluated_now and not math.isfinite(loss := self.backend.probe()):
            raise self._diverged(f"the loss is {loss}")

    def _wait_for_slices(self) -> None:
        """Wait until the last slices are written, and remove those that are no longer kept."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, writing = pending
        writing.wait()
        self.sliced_step = step
        self._or_diverged(self._tidy_slices)

    def _tidy_slices(self) -> None:
        assert self.sliced_step is not None
        if not self._has_written:
            self._writer.wait()  # a best checkpoint that is being written is this run's, and has to stay
        if not self._has_written:
            self._remove_the_run_before()
            (self.directory / FILE_NAME).unlink(missing_ok=True)
            self._has_written = True
        sliced.prune(self.directory, self.sliced_step, self.options.keep)

    def _let_write(self, write: Callable[[], object]) -> None:
        """Let the first process write."""
        self._or_diverged(lambda: self._writer.write(write))

    def _or_diverged(self, action: Callable[[], object]) -> None:
        """Let the first process do it. An InputError says that the run has diverged, if that is the reason."""
        try:
            self.team.first_does(action)
        except InputError as error:
            sections = self._sections()
            bad = self.team.first_does(lambda: _not_finite(sections))  # only the first process has the arrays
            raise (self._diverged("the run cannot be saved", bad) if bad else error) from error

    def _write(
        self,
        directory: Path,
        sections: Mapping[str, Section],
        before_replacing: Callable[[], object] | None = None,
    ) -> None:
        write_checkpoint(
            directory, sections, before_replacing if self._has_written else self._remove_the_run_before
        )
        self._has_written = True

    def _holds_another_run(self) -> bool:
        """Whether the folder holds a checkpoint of another run, which this run is to replace."""
        self._writer.wait()
        if self._has_written:
            return False
        return (self.directory / FILE_NAME).exists() or bool(sliced.steps(self.directory))

    def _keep_last_before(self, step: int) -> None:
        if self.options.keep > 1 and self.saved_step is not None and self.saved_step != step:
            earlier.keep(self.directory, self.saved_step)

    def _remove_the_run_before(self) -> None:
        """Remove the best, earlier and sliced checkpoints of another run, whose last one is about to be replaced."""
        (self.directory / BEST / FILE_NAME).unlink(missing_ok=True)
        earlier.remove_all(self.directory)
        for step in sliced.steps(self.directory):
            if step != self.sliced_step:
                sliced.remove(self.directory, step)

    def _values(self) -> dict[str, Any]:
        """The values of the section "run"."""
        return {
            "options": self.options.to_dict(),
            "text_sha256": self.text_sha256,
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "history": [asdict(evaluation) for evaluation in self.history],
        }

    def _sections(self) -> dict[str, Section]:
        """All that is saved."""
        return {**self.backend.state(), SECTION: Section(self._values(), {})}

    # A run that has diverged

    def _diverged(self, reason: str, bad: Sequence[str] | None = None) -> InputError:
        """The error for this reason, and for values that are not finite in these arrays; None: they are looked for."""
        bad = _not_finite(self._sections()) if bad is None else bad
        arrays = f", and values are not finite in {', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}" if bad else ""
        return InputError(f"after step {self.step} {reason}{arrays}; {self._way_back()}")

    def _way_back(self) -> str:
        lower = f"--lr {self.options.lr / 10:g}"
        with suppress(InputError):  # what was saved before is as it was, too
            self.wait()
        if not self._has_written:
            return f"nothing was saved: start again with a lower learning rate, such as {lower}"
        saved = [step for step in (self.saved_step, self.sliced_step) if step is not None]
        last = bool(saved)
        step = max(saved) if saved else self.best_step
        words = _resume(self.directory, self.maker)
        command = shlex.join(words) if last else _resume_best(self.directory, self.maker)
        return (
            f"the checkpoint of step {step} is as it was: go on from there with a lower learning rate, such as "
            f"{command} {lower}"
        )


def _not_finite(sections: Mapping[str, Section]) -> list[str]:
    return [
        name
        for section in sections.values()
        for name, array in section.arrays.items()
        if not np.isfinite(array).all()
    ]


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
        is_there = (directory / FILE_NAME).exists() or bool(sliced.steps(directory))
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
            f"on from a copy of its best checkpoint: {_resume_best(parent)}"
        )


def folder_of(path: Path) -> Path:
    """The folder of the run that is named by its folder or by its last checkpoint. InputError for another file."""
    if path.is_dir() or not path.exists():
        return path
    if path.name != FILE_NAME:
        raise InputError(
            f"{path} is not the last checkpoint of a run, so no run goes on from it; copy it to a new folder "
            f"as {FILE_NAME}, and resume that folder"
        )
    return path.parent


class _Found(NamedTuple):
    """A run as its last checkpoint has it: what it works on, what was saved, and how far it has come."""

    task: Task
    saved: SavedSections
    step: int
    tokens_seen: int
    history: list[Evaluation]


def _found_in(directory: Path, changes: Mapping[str, Any], kind: type[Options]) -> _Found:
    """The run in this folder, with these options of this kind replaced. InputError as `TrainingRun.resume`."""
    refuse_the_best_folder(directory)
    saved = _last_checkpoint(directory)
    if SECTION not in saved:
        raise InputError(f"the checkpoint {saved.path} holds a model but no training run; start one with --out")
    state = saved.values(SECTION)
    with named_in_errors(saved):
        begun = kind.of_checkpoint(value_of(state, "options", dict)).settled()
        step, tokens_seen = (_count_of(state, name) for name in ("step", "tokens_seen"))
        history = [Evaluation.of(entry) for entry in value_of(state, "history", list)]
        text_sha256 = value_of(state, "text_sha256", str)
    options = kind.of({**begun.to_dict(), **changes})
    if options.steps < step:
        raise InputError(
            f"steps is {options.steps}, but the run in {directory} has done {step}; expected at least as many"
        )
    config = saved_config(saved)
    tokenizer = _tokenizer_of(options, config)
    corpus = _same_corpus(options, tokenizer, config, directory, text_sha256)
    return _Found(Task(options, config, tokenizer, corpus, directory), saved, step, tokens_seen, history)


def _last_checkpoint(directory: Path) -> SavedSections:
    """The checkpoint of the latest step in the folder of a run, whole or in slices. InputError if there is none."""
    steps = sliced.steps(directory)
    if not steps:
        return read_checkpoint(directory)
    if (directory / FILE_NAME).exists():
        whole = read_checkpoint(directory)
        with named_in_errors(whole):
            if SECTION in whole and _count_of(whole.values(SECTION), "step") >= steps[-1]:
                return whole
    folder = sliced.path_of(directory, steps[-1])
    try:
        return read_slices(folder)
    except InputError as error:
        raise InputError(f"{error}; remove {folder} to go on from the checkpoint before it") from error


def _resume(directory: Path, maker: Maker | None = None) -> list[str]:
    """The words of the command that resumes the run in this folder."""
    program, command = (maker.program, maker.command) if maker else ("numpygpt", "train")
    return [program, command, "--resume", str(directory)]


def _resume_best(directory: Path, maker: Maker | None = None) -> str:
    """The commands that go on from the best checkpoint of the run in this folder, in a new folder beside it."""
    copy = directory.parent / f"{BEST}-of-{Path(os.path.realpath(directory)).name}"
    commands = (["mkdir", str(copy)], ["cp", str(directory / BEST / FILE_NAME), str(copy)], _resume(copy, maker))
    return " && ".join(map(shlex.join, commands))


def _tokenizer_of(options: Options, config: GPTConfig) -> Encoding:
    """The tokenizer of a run. InputError if the model has too small a vocabulary for it."""
    tokenizer = get_tokenizer(options.tokenizer, options.vocab)
    if tokenizer.n_vocab > config.vocab_size:
        raise InputError(
            f"tokenizer {options.tokenizer!r} has {tokenizer.n_vocab} tokens, "
            f"but the model's vocab_size is {config.vocab_size}; expected at least as many"
        )
    return tokenizer


def _same_corpus(
    options: Options, tokenizer: Encoding, config: GPTConfig, directory: Path, expected_sha256: str
) -> Learned:
    """What a resumed run learns from. InputError if it cannot be read, or is not what the run has learned from."""
    what, flag = options.names_of_the_data
    try:
        corpus = options.read_corpus(tokenizer, config)
    except InputError as error:
        raise InputError(f"{error}; say with {flag} where the {what} of the run is now") from error
    if corpus.sha256 != expected_sha256:
        source = options.tokens or ", ".join(options.text) or "the language reference of this Python"
        raise InputError(
            f"the {what} ({source}) is not the one that the run in {directory} learned from; "
            f"expected SHA-256 {expected_sha256}, found {corpus.sha256}"
        )
    return corpus


def _count_of(state: Mapping[str, Any], name: str) -> int:
    count: int = value_of(state, name, int)
    if count < 0:
        raise InputError(f"{name} is {count}; expected 0 or more")
    return count
