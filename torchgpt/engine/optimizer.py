"""The optimizers by PyTorch, whose states are saved and loaded in the form of `numpygpt.training.optimizer`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from numpygpt.errors import InputError
from numpygpt.sections import SavedSections, named_in_errors
from numpygpt.training.groups import NamedGroup, assigned, groups_of, named_groups, with_members
from numpygpt.training.muon import is_matrix_of_a_block
from numpygpt.training.optimizer import SECTION, named_kind, refuse_other_keys, saved_values
from numpygpt.training.optimizer_checks import positive_eps, step_count
from numpygpt.training.optimizers import OPTIMIZERS
from numpygpt.training.options import Options
from torchgpt.engine.own_optimizers import Lion, Muon
from torchgpt.parallel.model import ParallelModel

#: What makes each optimizer but muon, which is two of PyTorch's.
MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "lion": Lion,
}
#: These update all parameters of a group in one fused kernel.
FUSED = ("adamw", "adam", "sgd")
#: The settings that differ between the groups of a run.
OF_GROUPS = ("lr", "weight_decay")


class Optimizer:
    """An optimizer for what this process holds of a model's parameters.

    A slice is updated as the whole is, because all optimizers but Muon compute element by element.

    kind     its name, as `--optimizer` has it
    values   its hyper-parameters
    steps    how many steps it has taken
    groups   the parameters with rates of their own, as a checkpoint names them

    Raises InputError for Muon, which needs whole matrices, where the processes hold slices of them.
    """

    def __init__(self, model: ParallelModel, options: Options, groups: list[NamedGroup] | None = None) -> None:
        self.model, self.steps, self.dtype = model, 0, np.dtype(options.dtype)
        self.kind, self.values = options.optimizer, options.optimizer_settings
        if self.kind == "muon" and (model.scheme.fsdp > 1 or model.scheme.tp > 1):
            raise InputError(
                f"muon needs whole matrices, and {model.scheme} cuts them; choose --parallel ddp or pp, or another "
                f"--optimizer"
            )
        shapes = _shapes_alone(model)
        self.groups = assigned(with_members(groups_of(options.decay), shapes), shapes) if groups is None else groups
        self._make()

    def _make(self) -> None:
        """New optimizers of PyTorch's, which have taken no step."""
        of_rates: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
        named = {name: group for group in self.groups for name in group.names}
        for name, parameter in self.model.parameters().items():
            is_rest = self.kind == "muon" and not is_matrix_of_a_block(name, parameter.ndim)
            lr_scale, weight_decay = self._rates(named.get(name))
            if is_rest:
                lr_scale *= self.values["rest_lr_scale"]
            of_rates.setdefault((is_rest, lr_scale, weight_decay), []).append(parameter)
        groups: dict[bool, list[dict[str, Any]]] = {}
        for (is_rest, lr_scale, weight_decay), parameters in of_rates.items():
            group = {"params": parameters, "lr_scale": lr_scale, "weight_decay": weight_decay}
            groups.setdefault(is_rest, []).append(group)
        self._torch = [self._made(group, is_rest=is_rest) for is_rest, group in groups.items()]

    def _made(self, groups: list[dict[str, Any]], *, is_rest: bool) -> torch.optim.Optimizer:
        """The optimizer for these groups of parameters.

        is_rest   whether they are those that Muon leaves to AdamW
        """
        kind, settings = self.kind, {name: value for name, value in self.values.items() if name not in OF_GROUPS}
        if is_rest:
            kind, settings = "adamw", {name: settings[name] for name in ("betas", "eps")}
        elif kind == "muon":
            settings = {name: settings[name] for name in ("momentum", "nesterov")}
            return Muon(groups, lr=self.values["lr"], **settings)
        if kind in FUSED:
            settings["fused"] = self.model.device.type in ("cpu", "cuda", "mps")
        return MAKERS[kind](groups, lr=self.values["lr"], **settings)

    def _rates(self, group: NamedGroup | None) -> tuple[float, float]:
        """The multiple of the learning rate, and the weight decay, of a group; None: of what is in no group."""
        weight_decay: float = self.values["weight_decay"]
        if group is None:
            return 1.0, weight_decay
        return group.lr_scale, weight_decay if group.weight_decay is None else group.weight_decay

    def step(self, learning_rate: float) -> None:
        """Take a step with the parameters' gradients."""
        self.values["lr"] = learning_rate
        for optimizer in self._torch:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["lr_scale"]
            optimizer.step()
        self.steps += 1

    # What is saved

    def state_values(self) -> dict[str, Any]:
        """The values of the section "optimizer"."""
        return {
            **named_kind(self.kind),
            "step": self.steps,
            **saved_values(self.values),
            "groups": [{**group._asdict(), "names": list(group.names)} for group in self.groups],
        }

    @property
    def names(self) -> dict[str, list[str]]:
        """{kind of moment: names of the parameters, in all processes, that have such a moment}."""
        optimizer = OPTIMIZERS[self.kind]
        wanted = {name: optimizer.kinds_of(name, len(shape), self.values) for name, shape in self.model.shapes.items()}
        found = {kind: [name for name in wanted if kind in wanted[name]] for kind in optimizer.kinds}
        return {kind: names for kind, names in found.items() if names}

    def moments(self, kind: str) -> dict[str, Tensor]:
        """This process's slices of the moments of a kind, by the parameters' names; zeros before the first step."""
        states = {parameter: state for optimizer in self._torch for parameter, state in optimizer.state.items()}
        parameters = self.model.parameters()
        return {
            name: states[parameters[name]][kind] if states.get(parameters[name]) else torch.zeros_like(parameters[name])
            for name in self.names[kind]
            if name in parameters
        }

    def load(self, saved: SavedSections) -> None:
        """Continue from the section "optimizer" of a checkpoint. InputError for one that does not fit the model."""
        values = saved.values(SECTION)
        shapes = _shapes_alone(self.model)
        with named_in_errors(saved):
            refuse_other_keys(values, self.state_values())
            self.steps = step_count(values["step"])
            self.values = OPTIMIZERS[self.kind].checked(values)
            if "eps" in self.values:
                positive_eps(self.values["eps"], {"parameters": np.zeros(1, self.dtype)})
            self.groups = named_groups(values["groups"], shapes)
            self._refuse_other_moments(saved)
        self._make()
        if self.steps:
            for key, array in saved.each_array(SECTION):
                kind, _, name = key.partition(".")
                self._load_moment(kind, name, array)

    def _load_moment(self, kind: str, name: str, whole: np.ndarray) -> None:
        piece = self.model.slice_of(name, torch.from_numpy(np.ascontiguousarray(whole)))
        if piece is None:
            return
        parameter = self.model.parameters()[name]
        for optimizer in self._torch:
            if any(parameter is other for group in optimizer.param_groups for other in group["params"]):
                state = optimizer.state[parameter]
                state["step"] = torch.tensor(float(self.steps), device=self.model.device)
                state[kind] = piece.clone()

    def _refuse_other_moments(self, saved: SavedSections) -> None:
        """Raise InputError unless the moments of every parameter are there, of its shape and dtype."""
        found = saved.layouts(SECTION)
        expected = {f"{kind}.{name}": self.model.shapes[name] for kind, names in self.names.items() for name in names}
        faults = {
            "missing": [key for key in expected if key not in found],
            "unexpected": [key for key in found if key not in expected],
            "misshaped": [key for key, shape in expected.items() if key in found and found[key].shape != shape],
            f"not {self.dtype}": [key for key, layout in found.items() if layout.dtype != self.dtype.name],
        }
        listed = "; ".join(f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names)
        if listed:
            raise InputError(f"the optimizer's moments do not fit the model: {listed}")


def _shapes_alone(model: ParallelModel) -> dict[str, Any]:
    """Arrays of the parameters' shapes, whose elements have no bytes."""
    return {name: np.empty(shape, np.dtype("V0")) for name, shape in model.shapes.items()}
