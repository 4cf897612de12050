"""The backend of the training loop for a model that is tuned: the PyTorch twin of what NumPy's backend tunes.

The model is made in NumPy (`numpygpt.tuning.backend`), with its adapter and its quantized matrices, and then
computes in PyTorch: adapters by the library peft, matrices in nf4 and fp4 under them by bitsandbytes. So the two
backends begin with the same values, write the same sections, and each goes on with the other's run.

An adapter's dropout draws other masks than NumPy's: NumPy draws those of all paths after those of the body, and peft
draws each when its projection computes. Without --lora dropout the two take the same steps, on one CPU.
"""

from collections.abc import Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from numpygpt.adapt.adapters import DEFAULT, paths_of, remove_lora
from numpygpt.adapt.files import adapter_of
from numpygpt.adapt.quantized import dequantize, quantized_projections
from numpygpt.adapt.saving import Base, adapted_values
from numpygpt.data.batching import PairBatch
from numpygpt.data.loader import Position
from numpygpt.errors import InputError
from numpygpt.evaluation.scores import LogitsOf
from numpygpt.formats.peft_folder import Adapter, LowRank, write_adapter
from numpygpt.model.gpt import GPTModel
from numpygpt.model.scheme import Scheme
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import SavedSections, Section
from numpygpt.shapes import Array
from numpygpt.training.backend import Task
from numpygpt.training.goal import Goal
from numpygpt.training.step import StepTaken
from numpygpt.training.team import OneProcess
from numpygpt.tree import mapped, named
from numpygpt.tuning.aids import SECTION as AIDS
from numpygpt.tuning.aids import Aids, aids_of
from numpygpt.tuning.appraisal import appraisal
from numpygpt.tuning.backend import (
    ADAPTER,
    CANNOT_WRITE,
    Tuned,
    begun,
    check_folder,
    taken_up,
    tokens_of,
)
from numpygpt.tuning.goals import goal_of
from numpygpt.tuning.options import FinetuneOptions
from torchgpt import four_bit
from torchgpt.adapters import with_adapters
from torchgpt.bridge import tensors_of
from torchgpt.engine.backend import TorchBackend
from torchgpt.engine.draws import DefaultGenerator
from torchgpt.engine.goals import Aid, at_least_float32, loss_of
from torchgpt.engine.precision import DTYPES
from torchgpt.engine.settings import Settings
from torchgpt.parallel.model import ParallelModel, Share, whole_name
from torchgpt.parallel.part import Part, Stage, build_part
from torchgpt.parallel.team import ProcessTeam


class FinetuneBackend(TorchBackend):
    """PyTorch's backend for a model that is tuned: it begins with a trained one, and saves what is trained of it."""

    options: FinetuneOptions
    #: See `numpygpt.tuning.backend.Tuned`.
    base: Base | None
    #: The adapter as the run has begun or gone on with it; None if there is none.
    adapter: Adapter | None

    goal: Goal
    aids: Aids
    #: The reference or the teacher on the device; None if there is none.
    aid: Aid | None

    def __init__(self, task: Task, settings: Settings, team: OneProcess | ProcessTeam, device: torch.device) -> None:
        check_folder(task)
        super().__init__(task, settings, team, device)
        self.notes += getattr(task.corpus, "notes", [])

    def step(self, learning_rate: float) -> StepTaken:
        """See `Backend`."""
        if self.options.reads_text:
            return super().step(learning_rate)
        batches, numbers = [], []
        for _ in range(self.options.accumulate):
            batches.append(self._next_batch())
            numbers.append(self.batches.position["batches_done"])
        taken = self._stepped(self._gradients(batches), numbers, learning_rate)
        return taken._replace(tokens=sum(map(tokens_of, batches)))

    def evaluate(self) -> tuple[float, float]:
        """See `Backend`."""
        if self.options.reads_text:
            return super().evaluate()
        training, validation = (self._mean(loader) for loader in (self.train_loader, self.val_loader))
        return training, validation

    def appraise(self) -> dict[str, float]:
        """See `Appraises`."""
        reference = None if self.aid is None else self._logits_by(self.aid)
        return appraisal(self.options, self.val_loader.dataset, self._logits_by(self.model.outputs), reference)

    def _logits_by(self, compute: Aid) -> LogitsOf:
        """What computes logits as arrays, without gradients."""

        @torch.no_grad()
        def logits_of(ids: Array) -> Array:
            found: Array = at_least_float32(compute(torch.from_numpy(ids).to(self.device))).cpu().numpy()
            return found

        return logits_of

    def probe(self) -> float:
        """See `Backend`."""
        if self.options.reads_text:
            return super().probe()
        return self._loss(self.val_loader.batch(np.arange(min(self.options.batch_size, len(self.val_loader.dataset)))))

    def sample(self, prompt: str) -> str:
        """See `Backend`. A model that scores classes writes nothing."""
        return CANNOT_WRITE if self.config.classes is not None else super().sample(prompt)

    def num_trained(self) -> int:
        """See `TrainsSome`."""
        return sum(map(prod, self.model.shapes.values()))

    def export(self, directory: Path) -> Path | None:
        """Write the adapter to a folder of peft's in the folder of the run; None if there is no adapter."""
        if self.adapter is None:
            return None
        live = dict(self._whole(None))

        def trained(projection: str, path: LowRank) -> LowRank:
            A, B = (live[f"{projection}.lora_{matrix}.{DEFAULT}.weight"] for matrix in "AB")
            return LowRank(A, B, path.scale)

        folder = directory / ADAPTER
        paths = {projection: trained(projection, path) for projection, path in self.adapter.paths.items()}
        write_adapter(folder, self.adapter._replace(paths=paths))
        return folder

    def state(self) -> dict[str, Section]:
        """See `Backend`. The models that help are known by their fingerprints."""
        return {**super().state(), **({} if self.aids == Aids() else {AIDS: self.aids.section()})}

    def _new_model(self) -> ParallelModel:
        rng = TorchGenerator(self.options.seed)
        tuned = begun(self.options, rng, Path(self.options.checkpoint), self.options.head)
        model = self._aimed(tuned)
        torch.set_rng_state(torch.from_numpy(rng.to_torch_state()))  # peft has drawn, too
        return model

    def _saved_model(self, saved: SavedSections) -> ParallelModel:
        model = self._aimed(taken_up(self.options, saved, Path(self.options.checkpoint)))
        if AIDS in saved or self.aids != Aids():
            self.aids.refuse_others(saved)
        return model

    def _aimed(self, tuned: Tuned) -> ParallelModel:
        """The twin of the model that is tuned; the models that help it, and the goal, are found before."""
        self.aids = aids_of(self.options, tuned.model)
        self.goal = goal_of(self.options, self.aids)
        helper = self.aids.reference or self.aids.teacher
        self.aid = None if helper is None else self._computing(helper)
        self.base, sha256 = tuned.base, tuned.base and tuned.base.sha256
        self.adapter = adapter_of(tuned.model)._replace(base_sha256=sha256) if paths_of(tuned.model) else None
        return self._twin_of(tuned.model)

    def _computing(self, model: GPTModel) -> Aid:
        """What computes with a NumPy model on the device, without gradients: see `torchgpt.parallel.part.Part`."""
        part = self._part_of(remove_lora(model) if paths_of(model) else model).to(self.device).eval()

        @torch.no_grad()
        def compute(inputs: torch.Tensor, **options: Any) -> Any:
            return part(inputs, **options)

        return compute

    # Batches of records

    def _begin(self, draws: DefaultGenerator | TorchGenerator, position: Position | None) -> None:
        if self.options.reads_text:
            super()._begin(draws, position)
            return
        self.draws = draws
        self.train_loader, self.val_loader = self.corpus.loaders(
            self.options.batch_size, self.options.window(self.config), draws
        )
        self.batches = iter(self.train_loader) if position is None else self.train_loader.resume(position)

    def _next_batch(self) -> Any:
        for batch in self.batches:
            return batch
        self.batches = iter(self.train_loader)
        return next(self.batches)

    def _gradients(self, batches: Sequence[Any]) -> torch.Tensor:
        """Compute the gradients of the goal on these micro-batches together; returns the loss."""
        total = sum(map(self.goal.weight, batches)) or 1
        shares = [self._share(batch, total) for batch in batches]
        return self.model.gradients_by(loss_of(self.goal, self.aid), shares, self.scale.value)

    def _share(self, batch: Any, total: float) -> Share:
        """This process's rows of a micro-batch. One that would have none computes a row that does not count."""
        some = self.model.rows_of_process(len(first_array(batch)))
        own = mapped(lambda array: array[some], batch)
        if some.start == some.stop:
            return self._placed(mapped(lambda array: array[:1], batch), 0.0)
        return self._placed(own, self.goal.weight(own) / total)

    def _placed(self, batch: Any, factor: float) -> Share:
        """A batch in tensors on the device; of pairs, both answers of each."""
        rows = batch.both if isinstance(batch, PairBatch) else batch
        dtype = getattr(torch, self.options.dtype)

        def placed(array: Array) -> torch.Tensor:
            tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        found = mapped(placed, rows)
        options: dict[str, Any] = {name: placed(array) for name, array in getattr(rows, "options", {}).items()}
        if getattr(self.goal, "hidden", 0):
            options["hidden"] = True
        return Share(found, factor, options)

    def _loss(self, batch: Any) -> float:
        rows, _, options = self._placed(batch, 1.0)
        with torch.no_grad():
            return float(loss_of(self.goal, self.aid)(self.model.outputs(rows.inputs, **options), rows))

    def _mean(self, loader: Any) -> float:
        """The mean loss of the loader's first batches, each with its weight."""
        batches = list(islice(loader, self.options.eval_batches))
        weights = [self.goal.weight(batch) for batch in batches]
        return sum(self._loss(b) * weight for b, weight in zip(batches, weights, strict=True)) / (sum(weights) or 1)

    # The twin

    def _model_values(self) -> dict[str, Any]:
        return {} if self.base is None else adapted_values(self.base, self.options.adaptation)

    def _twin_of(self, model: GPTModel) -> ParallelModel:
        """The twin of a NumPy model on the device. On a CPU it uses the memory of the NumPy model's base."""
        has_paths = bool(paths_of(model))
        if self.team.size > 1:
            return self._shared(model)
        part = self._part_of(remove_lora(model) if has_paths else model)
        if self._packs(model):
            four_bit.put_layers(part.model, model, DTYPES.get(self.settings.precision or "", torch.float32))
        if has_paths:
            with_adapters(part.model, model)  # it changes the part's modules
        shapes = {name: array.shape for name, array in model.named_parameters().items() if model.trained(name)}
        for name, parameter in part.model.named_parameters():
            parameter.requires_grad_(whole_name(name, model.config) in shapes)
        part.to(self.device)
        dtype = getattr(torch, self.options.dtype)
        return ParallelModel(model.config, Scheme(), None, part, self.device, dtype, shapes)

    def _shared(self, model: GPTModel) -> ParallelModel:
        """The twin of a model of which all is trained, shared among the processes. InputError for any other."""
        if self.options.is_adapted:
            raise InputError(
                f"{self.options.adaptation} is computed in one process; start it without torchrun, or tune all weights"
            )
        shared = self._unfilled_model(model.config)
        if not self.options.reads_text and (shared.scheme.tp > 1 or shared.scheme.pp > 1):
            raise InputError(f"--parallel is {shared.scheme}; records are learned from with ddp and fsdp alone")
        for name, array in model.named_parameters().items():
            shared.fill(name, torch.from_numpy(array))
        return shared

    def _part_of(self, base: GPTModel) -> Part:
        """The modules of a NumPy model without paths, with its weights; quantized ones are whole."""
        part = build_part(base.config, Stage(0, 1), **self._how_to_compute())
        part.model.load_state_dict(tensors_of(dequantize(base)), assign=True)
        return part

    def _packs(self, model: GPTModel) -> bool:
        """Whether quantized matrices stay packed, in layers of bitsandbytes. A note says if they do not."""
        if not quantized_projections(model):
            return False
        if paths_of(model) and four_bit.has_layers_for(model):
            return True
        self.notes.append(
            "the quantized matrices are whole in memory here, of the values of their codes: bitsandbytes keeps nf4 and "
            "fp4 packed, in blocks of 32, 64, 128, ... values, under --lora and with --dtype float32"
        )
        return False


def first_array(batch: Any) -> Array:
    """An array of a batch, which has a row for each of its items."""
    return next(named(batch))[1]
