"""A training run: what `numpygpt train` starts, saves, and resumes bit for bit.

Everything that the next step depends on is in one place and in every checkpoint: the weights, the optimizer,
the random generator, the position in the text, and the options. So a run that was stopped and resumed is the
run that never stopped.
"""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from numpygpt.data.loader import Batches, DataLoader
from numpygpt.data.texts import python_reference_text, read_text, split_text
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.data.windows import GPTDatasetV1
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.pictures.losses import plot_losses
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.training.adamw import AdamW
from numpygpt.training.book import evaluate_model, sample_text
from numpygpt.training.schedules import constant, warmup_cosine
from numpygpt.training.step import training_step

SCHEDULES = ("cosine", "constant")
TRAIN_SHARE = 0.9


@dataclass(frozen=True)
class Options:
    """What a training run does, beside the model's configuration. The defaults are those of the command line.

    text            files to learn from; none: the language reference of the running Python
    tokenizer       "bytes" or "gpt2"
    vocab           file of GPT-2's ranks, where they should not be looked up
    steps           optimizer steps in all
    batch_size      windows in a micro-batch
    accumulate      micro-batches in a step
    lr, min_lr      peak learning rate, and what the cosine ends at
    warmup_steps    steps of linear warm-up
    schedule        "cosine" or "constant"
    weight_decay    AdamW's
    clip            largest norm of the gradient; 0: no clipping
    eval_every      steps between two evaluations
    eval_batches    batches of training and of validation text in each
    sample_every    steps between two samples; 0: none
    sample_prompt   what the samples continue
    save_every      steps between two checkpoints; 0: only at the end
    seed            of weights, batches and dropout
    dtype           "float32" or "float64"
    attention, checkpoint_activations   GPTModel's
    """

    text: tuple[str, ...] = ()
    tokenizer: str = "bytes"
    vocab: str | None = None
    steps: int = 600
    batch_size: int = 16
    accumulate: int = 1
    lr: float = 4e-3
    min_lr: float = 3e-4
    warmup_steps: int = 50
    schedule: str = "cosine"
    weight_decay: float = 0.1
    clip: float = 1.0
    eval_every: int = 150
    eval_batches: int = 16
    sample_every: int = 150
    sample_prompt: str = "The "
    save_every: int = 300
    seed: int = 123
    dtype: str = "float32"
    attention: str = "math"
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "eval_every", "eval_batches"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("lr", "min_lr", "warmup_steps", "clip", "weight_decay", "sample_every", "save_every"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.sample_every and not self.sample_prompt:
            raise InputError("sample_prompt is empty; expected text for the samples to continue, or sample_every 0")
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule is {self.schedule!r}; expected one of: {', '.join(SCHEDULES)}")
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype is {self.dtype!r}; expected float32 or float64")

    def read_text(self) -> str:
        """The text to learn from."""
        return read_text(self.text) if self.text else python_reference_text()

    def learning_rate(self, step: int) -> float:
        """Of step 0, 1, ..."""
        if self.schedule == "constant":
            return constant(step, peak_lr=self.lr)
        return warmup_cosine(
            step,
            peak_lr=self.lr,
            warmup_steps=self.warmup_steps,
            total_steps=self.steps,
            min_lr=min(self.min_lr, self.lr),
        )


@dataclass(frozen=True)
class Evaluation:
    """Losses in nats a token after `step` optimizer steps."""

    step: int
    epochs_seen: float
    tokens_seen: int
    train_loss: float
    val_loss: float


class TrainingRun:
    """A run at some step. `start` begins one, `resume` continues one from its checkpoint.

    step          optimizer steps done
    tokens_seen   tokens trained on
    history       the evaluations so far
    """

    model: GPTModel
    optimizer: AdamW
    _batches: Batches

    def __init__(self, options: Options, config: GPTConfig, directory: Path, rng: TorchGenerator) -> None:
        self.options, self.config, self.directory, self.rng = options, config, directory, rng
        self.tokenizer = get_tokenizer(options.tokenizer, options.vocab)
        if self.tokenizer.n_vocab > config.vocab_size:
            raise InputError(
                f"tokenizer {options.tokenizer!r} has {self.tokenizer.n_vocab} tokens, "
                f"but the model's vocab_size is {config.vocab_size}; expected at least as many"
            )
        text = options.read_text()
        self.text_sha256 = sha256(text.encode()).hexdigest()
        training_text, validation_text = split_text(text, TRAIN_SHARE)
        self.train_loader = self._loader("training", training_text, shuffle=True)
        self.val_loader = self._loader("validation", validation_text, shuffle=False)
        self.step = self.tokens_seen = 0
        self.history: list[Evaluation] = []

    @classmethod
    def start(cls, options: Options, config: GPTConfig, directory: Path, *, overwrite: bool = False) -> "TrainingRun":
        """A new run.

        InputError where the directory already holds a checkpoint, unless it may be overwritten, and where none could be
        written: better before the training than after it.
        """
        if (directory / FILE_NAME).exists() and not overwrite:
            raise InputError(
                f"{directory} already holds a checkpoint; continue it with --resume {directory}, "
                f"replace it with --overwrite, or choose another --out"
            )
        run = cls(options, config, directory, TorchGenerator(options.seed))
        run.model = GPTModel(config, run.rng, options.dtype, **run._how_to_compute())
        run.optimizer = AdamW(run.model, lr=options.lr, weight_decay=options.weight_decay)
        run._batches = iter(run.train_loader)
        make_writable(directory)
        return run

    @classmethod
    def resume(cls, directory: Path, **changes: Any) -> "TrainingRun":
        """The run whose checkpoint is in `directory`, at the step of that checkpoint.

        changes   options to replace, e.g. `steps` to train for longer

        InputError where there is no checkpoint of a run, where the text is not the one that the run learns from, and
        for fewer steps than it has done.
        """
        checkpoint = load_checkpoint(directory)
        state = checkpoint.training
        if not {"options", "text_sha256", "step", "tokens_seen", "position", "history"} <= state.keys():
            raise InputError(
                f"the checkpoint {checkpoint.path} holds a model but no training run; start one with --out"
            )
        options = Options(**{**state["options"], "text": tuple(state["options"]["text"]), **changes})
        if options.steps < state["step"]:
            raise InputError(
                f"steps is {options.steps}, but the run in {directory} has done {state['step']}; "
                f"expected at least as many"
            )
        run = cls(options, checkpoint.config, checkpoint.path.parent, TorchGenerator(options.seed))
        if run.text_sha256 != state["text_sha256"]:
            source = ", ".join(options.text) or "the language reference of this Python"
            raise InputError(
                f"the text ({source}) is not the one that the run in {directory} learned from; "
                f"expected SHA-256 {state['text_sha256']}, found {run.text_sha256}"
            )
        run.model = checkpoint.model(**run._how_to_compute())
        run.optimizer = AdamW(run.model)
        checkpoint.restore_optimizer(run.optimizer)
        run._batches = run.train_loader.resume(state["position"])
        run.rng.set_state(TorchGenerator.from_torch_state(checkpoint.random_states()["generator"]).get_state())
        run.step, run.tokens_seen = state["step"], state["tokens_seen"]
        run.history = [Evaluation(**entry) for entry in state["history"]]
        return run

    def _how_to_compute(self) -> dict[str, Any]:
        return {name: getattr(self.options, name) for name in ("attention", "checkpoint_activations")}

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step trains on."""
        return self.options.accumulate * self.options.batch_size * self.config.context_length

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.options.steps

    def train_step(self) -> float:
        """One optimizer step; returns its loss.

        Raises InputError, with the weights unchanged, for a loss that is not finite.
        """
        options = self.options
        self.optimizer.lr = options.learning_rate(self.step)
        loss = training_step(
            self.model,
            self.optimizer,
            [self._next_batch() for _ in range(options.accumulate)],
            rng=self.rng,
            max_norm=options.clip or None,
        )
        self.step += 1
        self.tokens_seen += self.tokens_per_step
        return loss

    def evaluate(self) -> Evaluation:
        """The losses now, appended to the history."""
        train_loss, val_loss = evaluate_model(
            self.model, self.train_loader, self.val_loader, self.options.eval_batches
        )
        epochs = self.step * self.options.accumulate / len(self.train_loader)
        self.history.append(Evaluation(self.step, epochs, self.tokens_seen, train_loss, val_loss))
        return self.history[-1]

    def sample(self) -> str:
        """The likeliest continuation of the options' prompt."""
        return sample_text(self.model, self.tokenizer, self.options.sample_prompt)

    def save(self) -> Path:
        """Write the checkpoint in place of the last one; returns its path."""
        return save_checkpoint(
            self.directory,
            self.model,
            optimizer=self.optimizer,
            random_states={"generator": self.rng.to_torch_state()},
            tokenizer=self.options.tokenizer,
            training={
                "options": asdict(self.options),
                "text_sha256": self.text_sha256,
                "step": self.step,
                "tokens_seen": self.tokens_seen,
                "position": self._batches.position,
                "history": [asdict(evaluation) for evaluation in self.history],
            },
        )

    def plot(self) -> Path:
        """Draw the loss curves so far into losses.png beside the checkpoint; returns its path."""
        path = self.directory / "losses.png"
        plot_losses(
            [entry.epochs_seen for entry in self.history],
            [entry.tokens_seen for entry in self.history],
            [entry.train_loss for entry in self.history],
            [entry.val_loss for entry in self.history],
            path,
        )
        return path

    def _loader(self, name: str, text: str, *, shuffle: bool) -> DataLoader:
        """Batches of one part of the text, its windows side by side; a shuffled epoch has full batches only."""
        length = self.config.context_length
        try:
            dataset = GPTDatasetV1(text, self.tokenizer, length, stride=length)
            return DataLoader(dataset, self.options.batch_size, shuffle=shuffle, drop_last=shuffle, rng=self.rng)
        except InputError as error:
            raise InputError(f"the {name} part of the text is too short: {error}") from error

    def _next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        for batch in self._batches:
            return batch
        self._batches = iter(self.train_loader)
        return next(self._batches)


def make_writable(directory: Path) -> None:
    """Make the folder, if it is not there. InputError where files cannot be written to it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(f"cannot write to the folder {directory}: {error.strerror}; choose another") from error


class StopRequest:
    """Whether Ctrl-C, or a polite kill, has asked the run to stop after the step it is in."""

    requested = False


@contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
    """Within it, the first Ctrl-C (or SIGTERM) only sets `requested`: no step is cut in half. A second interrupts."""
    request = StopRequest()

    def ask(number: int, frame: Any) -> None:
        request.requested = True
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
