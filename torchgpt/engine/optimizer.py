"""AdamW by PyTorch, whose state is saved and loaded in the form of `numpygpt.training.adamw.AdamW`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from numpygpt.errors import InputError
from numpygpt.sections import SavedSections, named_in_errors
from numpygpt.training.adamw import MOMENTS, SECTION
from numpygpt.training.groups import NamedGroup, assigned, groups_of, named_groups
from numpygpt.training.optimizer_checks import number, positive_eps, step_count, two_betas
from numpygpt.training.options import Options
from torchgpt.parallel.model import ParallelModel

BETAS, EPS = (0.9, 0.999), 1e-8


class Optimizer:
    """AdamW for what this process holds of a model's parameters.

    PyTorch updates all parameters of a group in one fused kernel. A slice is updated as the whole is, because AdamW
    computes element by element.

    steps    how many steps it has taken
    groups   the parameters with rates of their own, as a checkpoint names them
    """

    def __init__(self, model: ParallelModel, options: Options, groups: list[NamedGroup] | None = None) -> None:
        self.model, self.steps, self.dtype = model, 0, np.dtype(options.dtype)
        self.groups = groups if groups is not None else assigned(groups_of(options.decay), _shapes_alone(model))
        self.lr, self.weight_decay = options.lr, options.weight_decay
        self.betas, self.eps = BETAS, EPS
        self._make()

    def _make(self) -> None:
        """A new optimizer of PyTorch's, which has taken no step."""
        of_rates: dict[tuple[float, float], list[nn.Parameter]] = {}
        named = {name: group for group in self.groups for name in group.names}
        for name, parameter in self.model.parameters().items():
            of_rates.setdefault(self._rates(named.get(name)), []).append(parameter)
        self._torch = torch.optim.AdamW(
            [
                {"params": parameters, "lr_scale": lr_scale, "weight_decay": weight_decay}
                for (lr_scale, weight_decay), parameters in of_rates.items()
            ],
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            fused=self.model.device.type in ("cpu", "cuda", "mps"),
        )

    def _rates(self, group: NamedGroup | None) -> tuple[float, float]:
        """The multiple of the learning rate, and the weight decay, of a group; None: of what is in no group."""
        if group is None:
            return 1.0, self.weight_decay
        return group.lr_scale, self.weight_decay if group.weight_decay is None else group.weight_decay

    def step(self, learning_rate: float) -> None:
        """Take a step with the parameters' gradients."""
        self.lr = learning_rate
        for group in self._torch.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        self._torch.step()
        self.steps += 1

    # What is saved

    def values(self) -> dict[str, Any]:
        """The values of the section "optimizer"."""
        return {
            "step": self.steps,
            "lr": self.lr,
            "betas": list(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "groups": [{**group._asdict(), "names": list(group.names)} for group in self.groups],
        }

    def moments(self, kind: str) -> dict[str, Tensor]:
        """This process's slices of "exp_avg" or "exp_avg_sq", by the parameters' names; zeros before the first step."""
        states = self._torch.state
        return {
            name: states[parameter][kind] if states.get(parameter) else torch.zeros_like(parameter)
            for name, parameter in self.model.parameters().items()
        }

    def load(self, saved: SavedSections) -> None:
        """Continue from the section "optimizer" of a checkpoint. InputError for one that does not fit the model."""
        values = saved.values(SECTION)
        shapes = _shapes_alone(self.model)
        with named_in_errors(saved):
            _refuse_other_values(values, self.values())
            self.steps = step_count(values["step"])
            self.lr, self.weight_decay = (number(name, values[name]) for name in ("lr", "weight_decay"))
            self.betas = two_betas(values["betas"])
            self.eps = positive_eps(values["eps"], {"parameters": np.zeros(1, self.dtype)})
            self.groups = named_groups(values["groups"], shapes)
            _refuse_other_moments(saved, self.model, self.dtype)
        self._make()
        parameters = self.model.parameters()
        for key, array in saved.each_array(SECTION):
            kind, _, name = key.partition(".")
            piece = self.model.slice_of(name, torch.from_numpy(np.ascontiguousarray(array)))
            if piece is not None and self.steps:
                state = self._torch.state[parameters[name]]
                state.setdefault("step", torch.tensor(float(self.steps), device=self.model.device))
                state[kind] = piece.clone()


def _shapes_alone(model: ParallelModel) -> dict[str, Any]:
    """Arrays of the parameters' shapes, whose elements have no bytes."""
    return {name: np.empty(shape, np.dtype("V0")) for name, shape in model.shapes.items()}


def _refuse_other_values(values: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    missing, unexpected = [key for key in expected if key not in values], [key for key in values if key not in expected]
    if missing or unexpected:
        raise InputError(f"the optimizer's state does not fit: missing {missing}, unexpected {unexpected}")


def _refuse_other_moments(saved: SavedSections, model: ParallelModel, dtype: np.dtype) -> None:
    """Raise InputError unless there are two moments of every parameter, of its shape and dtype."""
    found = saved.layouts(SECTION)
    expected = {f"{kind}.{name}": shape for kind in MOMENTS for name, shape in model.shapes.items()}
    faults = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "misshaped": [key for key, shape in expected.items() if key in found and found[key].shape != shape],
        f"not {dtype}": [key for key, layout in found.items() if layout.dtype != dtype.name],
    }
    listed = "; ".join(f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names)
    if listed:
        raise InputError(f"the optimizer's moments do not fit the model: {listed}")
