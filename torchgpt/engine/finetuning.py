"""The backend of the training loop for a model that is tuned: the PyTorch twin of what NumPy's backend tunes.

The model is made in NumPy (`numpygpt.tuning.backend`), with its adapter and its quantized matrices, and then
computes in PyTorch: adapters by the library peft, matrices in nf4 and fp4 under them by bitsandbytes. So the two
backends begin with the same values, write the same sections, and each goes on with the other's run.

An adapter's dropout draws other masks than NumPy's: NumPy draws those of all paths after those of the body, and peft
draws each when its projection computes. Without --lora dropout the two take the same steps, on one CPU.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from numpygpt.adapt.adapters import DEFAULT, paths_of, remove_lora
from numpygpt.adapt.files import adapter_of
from numpygpt.adapt.quantized import dequantize, quantized_projections
from numpygpt.adapt.saving import Base, adapted_values
from numpygpt.formats.peft_folder import Adapter, LowRank, write_adapter
from numpygpt.model.gpt import GPTModel
from numpygpt.model.scheme import Scheme
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import SavedSections
from numpygpt.training.backend import Task
from numpygpt.training.options import Options
from numpygpt.training.team import OneProcess
from numpygpt.tuning.backend import ADAPTER, Tuned, begun, refuse_another_adapter_folder, taken_up
from numpygpt.tuning.options import FinetuneOptions
from torchgpt import four_bit
from torchgpt.adapters import with_adapters
from torchgpt.bridge import tensors_of
from torchgpt.engine.backend import Maker, TorchBackend
from torchgpt.engine.precision import DTYPES
from torchgpt.engine.settings import Settings
from torchgpt.parallel.model import ParallelModel, whole_name
from torchgpt.parallel.part import Part, Stage, build_part
from torchgpt.parallel.team import ProcessTeam


@dataclass(frozen=True)
class FinetuneMaker(Maker):
    """Makes backends that tune a model; in one process."""

    command: str = "finetune"
    options_type: type[Options] = FinetuneOptions

    @property
    def kind(self) -> type[TorchBackend]:
        """Of the backends."""
        return FinetuneBackend


class FinetuneBackend(TorchBackend):
    """PyTorch's backend for a model that is tuned: it begins with a trained one, and saves what is trained of it."""

    options: FinetuneOptions
    #: See `numpygpt.tuning.backend.Tuned`.
    base: Base | None
    #: The adapter as the run has begun or gone on with it; None if there is none.
    adapter: Adapter | None

    def __init__(self, task: Task, settings: Settings, team: OneProcess | ProcessTeam, device: torch.device) -> None:
        refuse_another_adapter_folder(task)
        super().__init__(task, settings, team, device)

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

    def _new_model(self) -> ParallelModel:
        rng = TorchGenerator(self.options.seed)
        model = self._twin_of(begun(self.options, rng, Path(self.options.checkpoint), self.options.head))
        torch.set_rng_state(torch.from_numpy(rng.to_torch_state()))  # peft has drawn, too
        return model

    def _saved_model(self, saved: SavedSections) -> ParallelModel:
        return self._twin_of(taken_up(self.options, saved, Path(self.options.checkpoint)))

    def _model_values(self) -> dict[str, Any]:
        return {} if self.base is None else adapted_values(self.base, self.options.adaptation)

    def _twin_of(self, tuned: Tuned) -> ParallelModel:
        """The twin of a NumPy model on the device. On a CPU it uses the memory of the NumPy model's base."""
        model, self.base = tuned
        has_paths, sha256 = bool(paths_of(model)), self.base and self.base.sha256
        self.adapter = adapter_of(model)._replace(base_sha256=sha256) if has_paths else None
        part = self._part_of(remove_lora(model) if has_paths else model)
        if self._packs(model):
            four_bit.put_layers(part.model, model, DTYPES.get(self.settings.precision or "", torch.float32))
        if has_paths:
            with_adapters(part.model, model)  # it changes the part's modules
        shapes = {name: array.shape for name, array in model.named_parameters().items() if model.trained(name)}
        for name, parameter in part.model.named_parameters():
            parameter.requires_grad_(whole_name(name, self.config) in shapes)
        part.to(self.device)
        dtype = getattr(torch, self.options.dtype)
        return ParallelModel(self.config, Scheme(), None, part, self.device, dtype, shapes)

    def _part_of(self, base: GPTModel) -> Part:
        """The modules of a NumPy model without paths, with its weights; quantized ones are whole."""
        part = build_part(self.config, Stage(0, 1), **self._how_to_compute())
        part.model.load_state_dict(tensors_of(dequantize(base)), assign=True)
        return part

    def _packs(self, model: GPTModel) -> bool:
        """Whether quantized matrices stay packed, in layers of bitsandbytes. A note says if they do not."""
        if not quantized_projections(model):
            return False
        if self.adapter is not None and four_bit.has_layers_for(model):
            return True
        self.notes.append(
            "the quantized matrices are whole in memory here, of the values of their codes: bitsandbytes keeps nf4 and "
            "fp4 packed, in blocks of 32, 64, 128, ... values, under --lora and with --dtype float32"
        )
        return False
