"""The backend of the training loop that computes in NumPy."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from numpygpt.data.loader import Batches, Position
from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_of, model_section
from numpygpt.model.sizes import check_memory, training_bytes
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import SavedSections, Section, named_in_errors, value_of
from numpygpt.training.backend import Task
from numpygpt.training.book import calc_loss_batch, evaluate_model, sample_text
from numpygpt.training.disk_state import zeros_on_disk
from numpygpt.training.goal import NEXT_TOKEN, Goal
from numpygpt.training.groups import Group, groups_of, with_members
from numpygpt.training.loss_scale import SECTION as LOSS_SCALE
from numpygpt.training.loss_scale import LossScale
from numpygpt.training.optimizer import Optimizer, Zeros, in_memory
from numpygpt.training.optimizers import new_optimizer, state_bytes
from numpygpt.training.options import Options
from numpygpt.training.step import StepTaken, training_step
from numpygpt.training.team import OneProcess
from numpygpt.training.trouble import described


class NumpyBackend:
    """A `Backend` with a model, its optimizer, its batches, and one random generator that all of them draw from.

    The draws are those of PyTorch's default generator in the book's listings, in the same order.

    notes   see `numpygpt.training.backend.Notes`
    """

    program, command = "numpygpt", "train"
    options_type: ClassVar[type[Options]] = Options
    team = OneProcess()
    state_is_a_copy = False

    model: GPTModel
    optimizer: Optimizer
    batches: Batches
    goal: Goal = NEXT_TOKEN

    def __init__(self, task: Task) -> None:
        self.options, self.config, self.tokenizer = task.options, task.config, task.tokenizer
        self._state_folder = Path(task.options.optimizer_state_dir or task.directory)
        self._check_memory()
        self.rng = TorchGenerator(self.options.seed)
        size, length = self.options.batch_size, self.options.window(self.config)
        self.train_loader, self.val_loader = task.corpus.loaders(size, length, self.rng)
        self.scale = LossScale(self.options.precision)
        self.notes: list[str] = []
        self._norms: Mapping[str, float] = {}

    @classmethod
    def start(cls, task: Task) -> "NumpyBackend":
        """See `Maker`."""
        backend = cls(task)
        backend.model = backend._new_model()
        learner = backend.learner
        trained = {name: array for name, array in learner.named_parameters().items() if learner.trained(name)}
        backend.optimizer = backend._new_optimizer(with_members(groups_of(task.options.decay), trained))
        backend.batches = iter(backend.train_loader)
        return backend

    @classmethod
    def load(cls, task: Task, saved: SavedSections) -> "NumpyBackend":
        """See `Maker`."""
        backend = cls(task)
        backend.model = backend._saved_model(saved)
        backend.optimizer = backend._new_optimizer([])
        backend.optimizer.load_section(saved)
        data, random_states = saved.values("data"), saved.arrays("random")
        with named_in_errors(saved):
            if LOSS_SCALE in saved:
                backend.scale.load(dict(saved.values(LOSS_SCALE)))
            backend.batches = backend.train_loader.resume(position_of(value_of(data, "position", dict)))
            backend.rng.set_state(TorchGenerator.from_torch_state(random_states.get("generator")).get_state())
        return backend

    @property
    def learner(self) -> Any:
        """What the goal and the optimizer take: the model."""
        return self.model

    def batches_in_an_epoch(self) -> int:
        """See `Backend`."""
        return len(self.train_loader)

    def step(self, learning_rate: float) -> StepTaken:
        """See `Backend`."""
        self.optimizer.lr = learning_rate
        micro_batches, numbers = [], []
        for _ in range(self.options.accumulate):
            micro_batches.append(self._next_batch())
            numbers.append(self.batches.position["batches_done"])
        max_norm = self.options.clip or None
        try:
            taken = training_step(
                self.learner, self.optimizer, micro_batches, goal=self.goal, rng=self.rng, max_norm=max_norm,
                scale=self.scale,
            )  # fmt: skip
        except InputError as error:
            raise described(error, numbers, self._norms) from error
        if self.scale.refuses(taken.norms):
            self.notes.append(self.scale.note)
        self._norms = taken.norms
        return taken

    def evaluate(self) -> tuple[float, float]:
        """See `Backend`."""
        return evaluate_model(self.model, self.train_loader, self.val_loader, self.options.eval_batches)

    def probe(self) -> float:
        """See `Backend`."""
        windows, first = self.val_loader.dataset, slice(self.options.batch_size)
        return calc_loss_batch(windows.input_ids[first], windows.target_ids[first], self.model)

    def sample(self, prompt: str) -> str:
        """See `Backend`."""
        return sample_text(self.model, self.tokenizer, prompt)

    def state(self) -> dict[str, Section]:
        """See `Backend`."""
        sections = {
            "model": self._model_section(),
            "optimizer": self.optimizer.section(),
            "random": Section({}, {"generator": self.rng.to_torch_state()}),
            "data": Section({"position": self.batches.position}, {}),
        }
        return {**sections, LOSS_SCALE: Section(self.scale.state(), {})} if self.scale.adapts else sections

    def _new_model(self) -> GPTModel:
        return GPTModel(self.config, self.rng, self.options.dtype, **self._of_the_model())

    def _saved_model(self, saved: SavedSections) -> GPTModel:
        return model_of(saved, **self._of_the_model())

    def _model_section(self) -> Section:
        return model_section(self.model, self.options.tokenizer)

    def _how_to_compute(self) -> dict[str, Any]:
        """Those of them that change the memory of a step."""
        return {name: getattr(self.options, name) for name in ("attention", "checkpoint_activations")}

    def _of_the_model(self) -> dict[str, Any]:
        """The options with which a model is made."""
        formats = {name: getattr(self.options, name) for name in ("precision", "autocast")}
        return {**self._how_to_compute(), **formats}

    def _new_optimizer(self, groups: list[Group]) -> Optimizer:
        options = self.options
        zeros: Zeros = partial(zeros_on_disk, self._state_folder) if options.optimizer_state == "disk" else in_memory
        return new_optimizer(options.optimizer, self.learner, options.optimizer_settings, groups, zeros=zeros)

    def _check_memory(self) -> None:
        """Raise InputError, before any memory is taken, if a training step needs more than the machine has.

        Moments on the disk take no memory: what the system keeps of their file, it can forget.
        """
        options, tokens = self.options, self.options.window(self.config)
        state = state_bytes(options.optimizer, options.optimizer_settings, self.config, options.dtype)
        step = training_bytes(
            self.config,
            options.batch_size,
            tokens,
            options.dtype,
            optimizer=0 if options.optimizer_state == "disk" else state,
            **self._how_to_compute(),
        )
        count = f"{options.accumulate} times " if options.accumulate > 1 else ""
        token_ids = options.accumulate * options.batch_size * tokens * 2 * 8  # inputs and targets, int64, drawn at once
        check_memory(
            step.peak + token_ids, f"a training step of this model on {count}{options.batch_size} x {tokens} tokens"
        )

    def _next_batch(self) -> Any:
        for batch in self.batches:
            return batch
        self.batches = iter(self.train_loader)
        return next(self.batches)


def position_of(saved: Mapping[str, Any]) -> Position:
    """How far an epoch had come, as the section "data" has it. InputError for anything else."""
    order_seed = value_of(saved, "order_seed", int, type(None))
    if order_seed is not None:
        TorchGenerator(order_seed)  # InputError if it is not a seed
    return {"order_seed": order_seed, "batches_done": value_of(saved, "batches_done", int)}
