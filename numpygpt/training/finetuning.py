"""Training that begins with a trained model, whole or with adapters: the options, and the backend in NumPy."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from numpygpt.adapt.adaptation import Adaptation
from numpygpt.adapt.adapters import paths_of
from numpygpt.adapt.files import fingerprint, save_adapter
from numpygpt.adapt.quantized import weight_bytes
from numpygpt.adapt.saving import Base, adapted_section, base_model, base_of, model_of
from numpygpt.errors import InputError
from numpygpt.formats.peft_folder import refuse_other_files
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import SECTION, model_section
from numpygpt.model.sizes import check_memory, training_bytes, tuning_bytes
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import SavedSections, Section
from numpygpt.training.backend import Task
from numpygpt.training.declared import declaration_of, option
from numpygpt.training.numpy_backend import NumpyBackend
from numpygpt.training.optimizers import state_bytes_of
from numpygpt.training.options import Options, absolute

#: The folder within the run's in which peft finds the adapter.
ADAPTER = "adapter"
#: What is usual for an adapter, whose few values may move further than a whole model's: the learning rate that QLoRA
#: has for its smaller models (Dettmers et al. 2023, arXiv:2305.14314, table 9).
ADAPTER_OPTIONS = {"lr": 2e-4}


def _again(name: str, default: Any) -> Any:
    """The option of `Options` with another default."""
    return option(default, **declaration_of(Options, name)._asdict())


@dataclass(frozen=True)
class FinetuneOptions(Options):
    """The options of a run that begins with a trained model. The model's sizes and its tokenizer are the model's.

    The learning rate is that of the book's chapter 7, which tunes all weights.
    """

    checkpoint: str = option(
        "", "the model to begin with: a folder of a training run, or of another program's GPT-2", changeable=True,
        metavar="DIR",
    )  # fmt: skip
    lora: str | None = option(
        None, "train an adapter and not the model: r=8,alpha=16 and any of targets=W_query+W_value or all-linear, "
        "dropout=0.1, scaling=rslora", metavar="WORDS",
    )  # fmt: skip
    quantize: str | None = option(
        None, "quantize the matrices of the blocks, which then are frozen: nf4 or int8, and any of double, block=64",
        metavar="WORDS",
    )  # fmt: skip
    freeze: tuple[str, ...] = option((), "leave these parameters as they are: names with *", metavar="PATTERN")
    length: int | None = option(None, "tokens in a window (default: the model's context_length)", smallest=1)
    steps: int = _again("steps", 200)
    batch_size: int = _again("batch_size", 4)
    lr: float = _again("lr", 5e-5)
    min_lr: float = _again("min_lr", 0.0)
    warmup_steps: int = _again("warmup_steps", 10)
    eval_every: int = _again("eval_every", 50)
    eval_batches: int = _again("eval_batches", 8)
    sample_every: int = _again("sample_every", 0)
    save_every: int = _again("save_every", 100)

    @classmethod
    def of_checkpoint(cls, saved: Mapping[str, Any]) -> "FinetuneOptions":
        """See `Options.of_checkpoint`. InputError for a run that began with no trained model."""
        if "checkpoint" not in saved:
            raise InputError("its run began with no trained model; go on with it by numpygpt train --resume")
        found = super().of_checkpoint(saved)
        assert isinstance(found, cls)
        return found

    @property
    def adaptation(self) -> Adaptation:
        """How the model is adapted."""
        return Adaptation(self.lora, self.quantize, self.freeze)

    @property
    def is_adapted(self) -> bool:
        """Whether the model is adapted at all, and what is saved needs its base."""
        return self.adaptation != Adaptation()

    def settled(self) -> "FinetuneOptions":
        """See `Options.settled`."""
        settled = super().settled()
        assert isinstance(settled, FinetuneOptions)
        return replace(settled, checkpoint=absolute(self.checkpoint))

    def window(self, config: GPTConfig) -> int:
        """See `Options.window`. InputError for a length that the model cannot read."""
        if self.length is not None and self.length > config.context_length:
            raise InputError(
                f"length is {self.length}; expected at most the model's context_length {config.context_length}"
            )
        return self.length or config.context_length


class Tuned(NamedTuple):
    """A model to be tuned. Its base is None if all of it is trained, and what is saved needs no base."""

    model: GPTModel
    base: Base | None


def begun(options: FinetuneOptions, rng: TorchGenerator, **how: Any) -> Tuned:
    """The model that a new run begins with, adapted as its options say.

    rng   draws a new adapter
    how   the options of `GPTModel`

    Raises InputError if the model cannot be read or adapted so, and if nothing of it is left to train.
    """
    path = Path(options.checkpoint)
    model = base_model(path, options.dtype, **how)
    base = Base(path.absolute(), fingerprint(model)) if options.is_adapted else None
    adapted = options.adaptation.of(model, rng)
    if not adapted.num_parameters(trained_only=True):
        raise InputError("nothing is left to train; freeze less, or add an adapter with --lora")
    return Tuned(adapted, base)


def taken_up(options: FinetuneOptions, saved: SavedSections, **how: Any) -> Tuned:
    """The model that a run has saved; `how` as in `begun`. InputError as `numpygpt.adapt.saving.model_of`."""
    path = Path(options.checkpoint).absolute()
    model = model_of(saved, base=path, **how)
    return Tuned(model, base_of(saved.values(SECTION))._replace(path=path) if options.is_adapted else None)


def refuse_another_adapter_folder(task: Task) -> None:
    """Raise InputError, before the training, if other files are where peft is to find the adapter."""
    if isinstance(task.options, FinetuneOptions) and task.options.lora is not None:
        refuse_other_files(task.directory / ADAPTER)


class FinetuneBackend(NumpyBackend):
    """NumPy's backend for a model that is tuned: it begins with a trained one, and saves what is trained of it."""

    command = "finetune"
    options_type: ClassVar[type[Options]] = FinetuneOptions

    options: FinetuneOptions
    base: Base | None

    def __init__(self, task: Task) -> None:
        refuse_another_adapter_folder(task)
        super().__init__(task)

    def _new_model(self) -> GPTModel:
        model, self.base = begun(self.options, self.rng, **self._of_the_model())
        self._check_memory_of(model)
        return model

    def _saved_model(self, saved: SavedSections) -> GPTModel:
        model, self.base = taken_up(self.options, saved, **self._of_the_model())
        return model

    def _model_section(self) -> Section:
        if self.base is None:
            return model_section(self.model, self.options.tokenizer)
        return adapted_section(self.model, self.options.tokenizer, self.base, self.options.adaptation)

    def export(self, directory: Path) -> Path | None:
        """Write the adapter to a folder of peft's in the folder of the run; None if there is no adapter."""
        if self.base is None or not paths_of(self.model):
            return None
        folder = directory / ADAPTER
        save_adapter(self.model, folder, base_sha256=self.base.sha256)
        return folder

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
