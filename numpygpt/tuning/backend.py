"""Training that begins with a trained model, whole or with adapters: the backend in NumPy."""

from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numpygpt.adapt.adapters import paths_of
from numpygpt.adapt.files import fingerprint, save_adapter
from numpygpt.adapt.quantized import weight_bytes
from numpygpt.adapt.saving import Base, adapted_section, base_model, base_of, model_of
from numpygpt.data.batching import PairBatch
from numpygpt.errors import InputError
from numpygpt.formats.peft_folder import refuse_other_files
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import SECTION, model_section
from numpygpt.model.sizes import check_memory, training_bytes, tuning_bytes
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import SavedSections, Section
from numpygpt.shapes import IGNORE_INDEX, Array
from numpygpt.training.backend import Task
from numpygpt.training.earlier import FOLDER as EARLIER
from numpygpt.training.goal import mean_loss
from numpygpt.training.numpy_backend import NumpyBackend
from numpygpt.training.optimizers import state_bytes_of
from numpygpt.training.options import Options
from numpygpt.training.run import BEST
from numpygpt.training.step import StepTaken
from numpygpt.tuning.aids import SECTION as AIDS
from numpygpt.tuning.aids import Aids, aids_of, with_tokens_of
from numpygpt.tuning.appraisal import appraisal
from numpygpt.tuning.goals import goal_of
from numpygpt.tuning.options import FinetuneOptions

#: The folder within the run's in which peft finds the adapter.
ADAPTER = "adapter"
#: What is shown in the place of a sample.
CANNOT_WRITE = "the model scores classes, and writes nothing"


class Tuned(NamedTuple):
    """A model to be tuned. Its base is None if all of it is trained, and what is saved needs no base."""

    model: GPTModel
    base: Base | None


def begun(options: FinetuneOptions, rng: TorchGenerator, path: Path, head: int | None, **how: Any) -> Tuned:
    """A model that a new run begins with, adapted as its options say.

    rng    draws a new head and a new adapter
    path   where the model is
    head   how many scores its head has to give; None: one of each token
    how    the options of `GPTModel`

    Raises InputError if the model cannot be read or adapted so, and if nothing of it is left to train.
    """
    model = base_model(path, options.dtype, **how)
    if head is None and model.config.classes is not None:
        raise InputError(
            f"{path} scores classes and writes no text; the objective {options.objective} needs "
            f"a model that does"
        )
    model = with_tokens_of(options, model)
    base = Base(path.absolute(), fingerprint(model)) if options.is_adapted else None
    adapted = options.adaptation._replace(head=head).of(model, rng)
    if not adapted.num_parameters(trained_only=True):
        raise InputError("nothing is left to train; freeze less, or add an adapter with --lora")
    return Tuned(adapted, base)


def taken_up(options: FinetuneOptions, saved: SavedSections, path: Path, **how: Any) -> Tuned:
    """The model that a run has saved; the rest as in `begun`. InputError as `numpygpt.adapt.saving.model_of`."""
    path = path.absolute()
    model = model_of(saved, base=path, **how)
    return Tuned(model, base_of(saved.values(SECTION))._replace(path=path) if options.is_adapted else None)


def section_of(tuned: Tuned, options: FinetuneOptions, head: int | None) -> Section:
    """What a checkpoint has of a model that is tuned; `head` as in `begun`."""
    if tuned.base is None:
        return model_section(tuned.model, options.tokenizer)
    return adapted_section(tuned.model, options.tokenizer, tuned.base, options.adaptation._replace(head=head))


def check_folder(task: Task) -> None:
    """Raise InputError, before the training, for a folder in which the run cannot leave what it makes.

    It would replace a model without which it is of no use; or other files are where peft is to find its adapter.
    """
    options, directory = task.options, task.directory
    assert isinstance(options, FinetuneOptions)
    written = {folder.resolve() for folder in (directory, directory / BEST, directory / EARLIER)}
    for name, path in options.models_to_go_on.items():
        model = Path(path)
        if (model if model.is_dir() else model.parent).resolve() in written:
            raise InputError(
                f"the run needs the model {model} (--{name.replace('_', '-')}), which it would replace in {directory}; "
                f"choose another --out"
            )
    if options.lora is not None:
        refuse_other_files(directory / ADAPTER)


class FinetuneBackend(NumpyBackend):
    """NumPy's backend for a model that is tuned: it begins with a trained one, and saves what is trained of it."""

    command = "finetune"
    options_type: ClassVar[type[Options]] = FinetuneOptions

    options: FinetuneOptions
    base: Base | None
    aids: Aids

    def __init__(self, task: Task) -> None:
        check_folder(task)
        super().__init__(task)
        self.notes += getattr(task.corpus, "notes", [])

    def step(self, learning_rate: float) -> StepTaken:
        """See `Backend`."""
        self._tokens = 0
        taken = super().step(learning_rate)
        return taken if self.options.reads_text else taken._replace(tokens=self._tokens)

    def evaluate(self) -> tuple[float, float]:
        """See `Backend`."""
        if self.options.reads_text:
            return super().evaluate()
        training, validation = (
            mean_loss(self.goal, self.learner, islice(loader, self.options.eval_batches))
            for loader in (self.train_loader, self.val_loader)
        )
        return training, validation

    def appraise(self) -> dict[str, float]:
        """See `Appraises`."""
        return appraisal(self.options, self.val_loader.dataset, self.model, self.aids.reference)

    def probe(self) -> float:
        """See `Backend`."""
        if self.options.reads_text:
            return super().probe()
        return float(self.goal.loss(self.learner, self.val_loader.batch(self._first())))

    def sample(self, prompt: str) -> str:
        """See `Backend`. A model that scores classes writes nothing."""
        if self.model.config.classes is not None:
            return CANNOT_WRITE
        return super().sample(prompt)

    def state(self) -> dict[str, Section]:
        """See `Backend`. The models that help are known by their fingerprints."""
        return {**super().state(), **({} if self.aids == Aids() else {AIDS: self.aids.section()})}

    def num_trained(self) -> int:
        """See `TrainsSome`."""
        return self.model.num_parameters(trained_only=True)

    def export(self, directory: Path) -> Path | None:
        """Write the adapter to a folder of peft's in the folder of the run; None if there is no adapter."""
        if self.base is None or not paths_of(self.model):
            return None
        folder = directory / ADAPTER
        save_adapter(self.model, folder, base_sha256=self.base.sha256)
        return folder

    def _new_model(self) -> GPTModel:
        options = self.options
        model, self.base = begun(options, self.rng, Path(options.checkpoint), options.head, **self._of_the_model())
        self._check_memory_of(model)
        self._aim(model)
        return model

    def _saved_model(self, saved: SavedSections) -> GPTModel:
        model, self.base = taken_up(self.options, saved, Path(self.options.checkpoint), **self._of_the_model())
        self._aim(model)
        if AIDS in saved or self.aids != Aids():
            self.aids.refuse_others(saved)
        return model

    def _aim(self, model: GPTModel) -> None:
        """Find the models that help, and the goal."""
        self.aids = aids_of(self.options, model)
        self.goal = goal_of(self.options, self.aids)

    def _model_section(self) -> Section:
        return section_of(Tuned(self.model, self.base), self.options, self.options.head)

    def _next_batch(self) -> Any:
        batch = super()._next_batch()
        if not self.options.reads_text:
            self._tokens += tokens_of(batch)
        return batch

    def _first(self) -> Array:
        """The numbers of the first items to validate with."""
        return np.arange(min(self.options.batch_size, len(self.val_loader.dataset)))

    def _check_memory(self) -> None:
        """The memory of a tuned model is known when it is there: `_check_memory_of`."""
        if not self.options.is_adapted:
            super()._check_memory()

    def _check_memory_of(self, model: GPTModel) -> None:
        """Raise InputError if a step needs more memory than the machine has.

        A step holds the weights as they are, gradients and moments of what is trained, activations and logits.
        """
        options, tokens = self.options, self.options.window(self.config)
        shapes = {name: array.shape for name, array in model.named_parameters().items() if model.trained(name)}
        state = state_bytes_of(options.optimizer, options.optimizer_settings, shapes, model.dtype)
        step = tuning_bytes(
            training_bytes(self.config, options.batch_size, tokens, options.dtype, **self._how_to_compute()),
            weights=weight_bytes(model),
            gradients=model.num_parameters(trained_only=True) * model.dtype.itemsize,
            optimizer=0 if options.optimizer_state == "disk" else state,
        )
        check_memory(step.peak, f"a step of this model on {options.batch_size} x {tokens} tokens")


def tokens_of(batch: Any) -> int:
    """How many tokens of a batch of records are no padding, or have a target."""
    if isinstance(batch, PairBatch):
        batch = batch.both
    if hasattr(batch, "lengths"):
        return int(batch.lengths.sum())
    return int(np.count_nonzero(batch.targets != IGNORE_INDEX))
