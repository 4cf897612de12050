"""The backend of the training loop that computes in PyTorch, in one process or in many.

It takes the steps of `numpygpt.training.numpy_backend.NumpyBackend`, and writes the same sections, so that each of the
two can continue a run that the other has begun. Its own section, "torch", has what NumPy's backend does not need: how
the run computes, the scale of the loss, and the state of the generators that draw dropout masks.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from numpygpt.data.loader import DataLoader, Position
from numpygpt.data.tokenizer import text_to_token_ids, token_ids_to_text
from numpygpt.errors import InputError
from numpygpt.model.saving import SECTION as MODEL
from numpygpt.model.saving import checked
from numpygpt.model.scheme import Scheme
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import SavedSections, Section, named_in_errors, value_of
from numpygpt.shapes import Array
from numpygpt.training.backend import Task
from numpygpt.training.clipping import common_norm
from numpygpt.training.loss_scale import SECTION as LOSS_SCALE
from numpygpt.training.loss_scale import LossScale
from numpygpt.training.numpy_backend import position_of
from numpygpt.training.options import Options
from numpygpt.training.step import StepTaken
from numpygpt.training.team import OneProcess
from numpygpt.training.trouble import described, not_finite
from torchgpt.engine.batches import Ahead
from torchgpt.engine.draws import DefaultGenerator, batch_draws, first_weights
from torchgpt.engine.optimizer import Optimizer
from torchgpt.engine.precision import autocast_of
from torchgpt.engine.settings import Settings
from torchgpt.engine.verify import verified
from torchgpt.parallel import sharded
from torchgpt.parallel.model import ParallelModel
from torchgpt.parallel.team import ProcessTeam, gather

#: The section of a checkpoint that this module writes and reads.
SECTION = "torch"
SAMPLE_TOKENS = 50
ATTENTIONS = {"math": "math", "flash": "sdpa"}


@dataclass(frozen=True)
class Maker:
    """Makes backends in PyTorch: see `numpygpt.training.backend.Maker`.

    settings   how a run computes
    given      the settings that somebody has asked for; a run that is resumed keeps its others
    team       the processes that compute together
    device     what this process computes on
    """

    settings: Settings
    team: OneProcess | ProcessTeam
    device: torch.device
    given: Mapping[str, Any] = field(default_factory=dict)
    program: str = "torchgpt"
    command: str = "train"
    options_type: type[Options] = Options

    def start(self, task: Task) -> "TorchBackend":
        """See `numpygpt.training.backend.Maker`."""
        return self.kind.start(task, self.settings, self.team, self.device)

    def load(self, task: Task, saved: SavedSections) -> "TorchBackend":
        """See `numpygpt.training.backend.Maker`."""
        settings = self.settings
        if SECTION in saved:
            with named_in_errors(saved):
                kept = value_of(saved.values(SECTION), "settings", dict)
                here = {"device": settings.device, "parallel": settings.parallel}
                settings = replace(Settings.of(kept), **{**self.given, **here})
        elif task.options.precision != "fp32":  # of a run that NumPy has begun
            settings = replace(settings, **{"precision": task.options.precision, **self.given})
        return self.kind.load(task, saved, settings, self.team, self.device)

    @property
    def kind(self) -> type["TorchBackend"]:
        """Of the backends."""
        return TorchBackend


class TorchBackend:
    """A `numpygpt.training.backend.Backend`.

    model       this process's part of the model
    notes       see `numpygpt.training.backend.Notes`
    """

    state_is_a_copy = True

    model: ParallelModel
    optimizer: Optimizer
    batches: Any  # Ahead, or the Batches of records
    draws: DefaultGenerator | TorchGenerator

    def __init__(self, task: Task, settings: Settings, team: OneProcess | ProcessTeam, device: torch.device) -> None:
        self.options, self.config, self.tokenizer = task.options, task.config, task.tokenizer
        self.settings, self.team, self.device, self.corpus = settings, team, device, task.corpus
        self.notes: list[str] = []
        if self.options.optimizer_state == "disk":
            raise InputError("torchgpt keeps the optimizer's state in memory; choose --optimizer-state memory")
        self.scale = LossScale(settings.precision)
        self._norms: Mapping[str, float] = {}

    @classmethod
    def start(
        cls, task: Task, settings: Settings, team: OneProcess | ProcessTeam, device: torch.device
    ) -> "TorchBackend":
        """A backend with a new model."""
        backend = cls(task, settings, team, device)
        torch.manual_seed(task.options.seed)
        backend.model = backend._new_model()
        backend.optimizer = Optimizer(backend.learner, task.options)
        backend._begin(batch_draws(alone_on_cpu=backend.alone_on_cpu), None)
        backend._seed_masks(task.options.seed)
        return backend

    @classmethod
    def load(
        cls,
        task: Task,
        saved: SavedSections,
        settings: Settings,
        team: OneProcess | ProcessTeam,
        device: torch.device,
    ) -> "TorchBackend":
        """A backend in the state that was saved, by this backend or by NumPy's."""
        backend = cls(task, settings, team, device)
        backend.model = backend._saved_model(saved)
        backend.optimizer = Optimizer(backend.learner, task.options)
        backend.optimizer.load(saved)
        data, random_states = saved.values("data"), saved.arrays("random")
        with named_in_errors(saved):
            generator = TorchGenerator.from_torch_state(random_states.get("generator"))
            draws = backend._restored(generator)
            backend._begin(draws, position_of(value_of(data, "position", dict)))
            backend._load_own(saved)
        return backend

    @property
    def alone_on_cpu(self) -> bool:
        """Whether this one process computes everything on the CPU, as NumPy's backend does."""
        return self.team.size == 1 and self.device.type == "cpu"

    @property
    def learner(self) -> ParallelModel:
        """What the optimizer trains: the model."""
        return self.model

    def batches_in_an_epoch(self) -> int:
        """See `Backend`."""
        return len(self.train_loader)

    def step(self, learning_rate: float) -> StepTaken:
        """See `Backend`. In fp16 a step whose gradients overflow is left out, and a note says so."""
        taken = [self.batches.take() for _ in range(self.options.accumulate)]
        if self.settings.verify_every and (self.optimizer.steps + 1) % self.settings.verify_every == 0:
            self.notes += verified(self, taken)
        n_targets = sum(batch.n_targets for batch in taken)
        loss = self.model.gradients([batch.placed for batch in taken], n_targets, self.scale.value)
        return self._stepped(loss, [batch.position["batches_done"] for batch in taken], learning_rate)

    def _stepped(self, loss: torch.Tensor, numbers: list[int], learning_rate: float) -> StepTaken:
        """Take a step with the gradients that are there.

        numbers   of the micro-batches within their epoch, for a message
        """
        norms = self.learner.norms()
        found, *scaled = torch.stack([loss, *norms.values()]).tolist()  # at once, because each waits for the device
        step = StepTaken(found, {name: norm / self.scale.value for name, norm in zip(norms, scaled, strict=True)})
        try:
            self._take(step, learning_rate)
        except InputError as error:
            raise described(error, numbers, self._norms) from error
        self._norms = step.norms
        return step

    def evaluate(self) -> tuple[float, float]:
        """See `Backend`."""
        return self._mean_loss(self.train_loader), self._mean_loss(self.val_loader)

    def probe(self) -> float:
        """See `Backend`."""
        windows, first = self.val_loader.dataset, slice(self.options.batch_size)
        return self.model.loss(windows.input_ids[first], windows.target_ids[first])

    def sample(self, prompt: str) -> str:
        """See `Backend`."""
        ids = text_to_token_ids(prompt, self.tokenizer)
        for _ in range(SAMPLE_TOKENS):
            logits = self.model.logits(ids[:, -self.config.context_length :])
            ids = np.concatenate([ids, logits[:, -1].argmax(dim=-1, keepdim=True).cpu().numpy()], axis=1)
        return token_ids_to_text(ids, self.tokenizer).replace("\n", " ")

    def state(self) -> dict[str, Section]:
        """See `Backend`. Only the first process gets the arrays, which all processes together have."""
        values, small = self._small_state()
        arrays: dict[str, dict[str, Array]] = {name: {} for name in values}
        for key, array in small.items():
            section, _, name = key.partition(".")
            arrays[section][name] = array
        arrays[MODEL] = dict(self._whole(None))
        for kind, names in self.optimizer.names.items():
            moments = self._whole(self.optimizer.moments(kind), names, of=self.learner)
            arrays["optimizer"] |= {f"{kind}.{name}": whole for name, whole in moments}
        return {name: Section(values[name], arrays[name]) for name in values}

    def _small_state(self) -> tuple[dict[str, dict[str, Any]], dict[str, Array]]:
        """The values of each section, and the arrays that are not cut into slices, by section and name."""
        masks = gather(self.team, self._mask_state())
        values: dict[str, dict[str, Any]] = {
            MODEL: {"config": self.config.to_dict(), "tokenizer": self.options.tokenizer, **self._model_values()},
            "optimizer": self.optimizer.state_values(),
            "random": {},
            "data": {"position": self.batches.position},
            SECTION: {
                "settings": self.settings.to_dict(),
                "loss_scale": self.scale.state(),
                "scheme": str(self.model.scheme),
            },
        }
        states = {f"{SECTION}.masks.{rank}": state for rank, state in enumerate(masks)}
        return values, {"random.generator": self._draws_state(), **states}

    @property
    def in_slices(self) -> bool:
        """See `numpygpt.training.backend.WritesSlices`."""
        return self.settings.sharded

    def start_slices(self, folder: Path, sections: Mapping[str, Mapping[str, Any]]) -> sharded.Saving:
        """See `numpygpt.training.backend.WritesSlices`."""
        values, small = self._small_state()
        weights = self.model.distributed(self.model.parameters())
        tensors = {f"{MODEL}.{name}": piece for name, piece in weights.items()}
        for kind in self.optimizer.names:
            pieces = self.model.distributed(self.optimizer.moments(kind))
            tensors |= {f"optimizer.{kind}.{name}": piece for name, piece in pieces.items()}
        if self.team.is_first:
            tensors |= {name: torch.from_numpy(array) for name, array in small.items()}
        return sharded.start_saving(folder, tensors, {**values, **sections}, self.team)

    # The model

    def _new_model(self) -> ParallelModel:
        """A model of first weights, which the default generator draws."""
        model = self._unfilled_model()
        for name, values in first_weights(self.config):
            model.fill(name, values)
        return model

    def _saved_model(self, saved: SavedSections) -> ParallelModel:
        checked(saved)
        model = self._unfilled_model()
        for name, array in saved.each_array(MODEL):
            model.fill(name, torch.from_numpy(np.ascontiguousarray(array)))
        return model

    def _unfilled_model(self) -> ParallelModel:
        scheme = Scheme.of(self.settings.parallel, self.team.size)
        how = self._how_to_compute()
        return ParallelModel.build(
            self.config, scheme, self.team, device=self.device, compiled=self.settings.compile, **how
        )

    def _how_to_compute(self) -> dict[str, Any]:
        """What `torchgpt.parallel.part.build_part` takes."""
        return {
            "dtype": getattr(torch, self.options.dtype),
            "attention": ATTENTIONS[self.options.attention],
            "kernels": self.settings.kernels,
            "checkpoint_activations": self.options.checkpoint_activations,
            "autocast": autocast_of(self.settings.precision, self.device, self.options.dtype),
        }

    def _model_values(self) -> dict[str, Any]:
        """What the section of the model says beside the configuration and the tokenizer."""
        return {}

    # A step

    def _take(self, step: StepTaken, learning_rate: float) -> None:
        """Clip, and update the weights. InputError, with the weights as they were, if something is not finite."""
        if not math.isfinite(step.loss):
            raise not_finite(step.loss, self.optimizer.steps + 1, learning_rate)
        if self.scale.refuses(step.norms):
            self.scale.overflowed()
            self.notes.append(self.scale.note)
            return
        norm = common_norm(step.norms)
        factor = min(1.0, self.options.clip / (norm + 1e-6)) if self.options.clip else 1.0
        if factor != self.scale.value:
            self.learner.multiply_gradients(factor / self.scale.value)
        self.optimizer.step(learning_rate)
        self.scale.fitted()

    def _mean_loss(self, loader: DataLoader) -> float:
        """The mean of the losses of the loader's first batches."""
        losses = [self.model.loss(*batch) for batch in islice(loader, self.options.eval_batches)]
        return sum(losses) / len(losses)

    # Batches and draws

    def _begin(self, draws: DefaultGenerator | TorchGenerator, position: Position | None) -> None:
        """Make the loaders, and begin an epoch or go on within one."""
        self.draws = draws
        size, length = self.options.batch_size, self.options.window(self.config)
        self.train_loader, self.val_loader = self.corpus.loaders(size, length, draws)
        batches = iter(self.train_loader) if position is None else self.train_loader.resume(position)
        self.batches = Ahead(self.train_loader, batches, self.model.place)

    def _restored(self, generator: TorchGenerator) -> DefaultGenerator | TorchGenerator:
        """What draws on from the state of this generator."""
        if not self.alone_on_cpu:
            return generator
        torch.set_rng_state(torch.from_numpy(generator.to_torch_state()))
        return DefaultGenerator()

    def _draws_state(self) -> Array:
        return self.draws.to_torch_state()

    def _seed_masks(self, seed: int) -> None:
        """Seed what draws dropout masks, unless it is what draws everything else, too."""
        if not self.alone_on_cpu:
            self.model.seed(seed)

    def _mask_state(self) -> Array:
        """The state of the generator that draws this process's dropout masks."""
        if self.device.type == "cuda":
            return torch.cuda.get_rng_state(self.device).numpy()
        if self.device.type == "mps":
            return torch.mps.get_rng_state().numpy()
        return torch.get_rng_state().numpy()

    def _load_own(self, saved: SavedSections) -> None:
        """The section "torch". A run that is shared in another way than before draws other dropout masks."""
        if SECTION not in saved:
            self._seed_masks(self.options.seed + self.optimizer.steps)
            if LOSS_SCALE in saved:  # of a run that NumPy has begun
                self.scale.load(dict(saved.values(LOSS_SCALE)))
            return
        values, states = saved.values(SECTION), saved.arrays(SECTION)
        self.scale.load(value_of(values, "loss_scale", dict))
        own = states.get(f"masks.{getattr(self.team, 'rank', 0)}")
        # the scheme counts, too: processes of tp have to draw the same masks, and those of ddp drew others
        is_shared_alike = len(states) == self.team.size and values.get("scheme") == str(self.model.scheme)
        if self.alone_on_cpu or own is None or not is_shared_alike or own.shape != self._mask_state().shape:
            self._seed_masks(self.options.seed + self.optimizer.steps)
            return
        self._set_mask_state(torch.from_numpy(np.ascontiguousarray(own)))

    def _set_mask_state(self, state: torch.Tensor) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            (torch.mps if self.device.type == "mps" else torch).set_rng_state(state)

    def _whole(
        self,
        pieces: Mapping[str, torch.Tensor] | None,
        names: Sequence[str] | None = None,
        of: ParallelModel | None = None,
    ) -> Iterable[tuple[str, Array]]:
        """Name and whole array, as a copy, of the model or another; in the processes that do not write, nothing."""
        for name, whole in (of or self.model).each_whole(pieces, names, wanted=self.team.is_first):
            yield name, whole.numpy()
