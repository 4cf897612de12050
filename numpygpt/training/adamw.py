"""AdamW."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.parallel import over_rows
from numpygpt.sections import SavedSections, Section, named_in_errors
from numpygpt.shapes import Array
from numpygpt.training.groups import Group, assigned, named_groups
from numpygpt.training.optimizer_checks import (
    number,
    positive_eps,
    refuse_changed_model,
    refuse_impossible,
    refuse_parts_of_arrays,
    refuse_unfit,
    refuse_what_cannot_be_trained,
    step_count,
    two_betas,
)
from numpygpt.tree import Trained, everything

SECTION = "optimizer"
MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """Adam with decoupled weight decay, as torch.optim.AdamW does it.

    Loshchilov & Hutter 2019 (arXiv:1711.05101, algorithm 2). For every parameter p with gradient g, at step
    t = 1, 2, ...:

        (1)  p <- p - lr weight_decay p               the decay is not part of the gradient
        (2)  m <- beta1 m + (1 - beta1) g             running mean of the gradient
        (3)  v <- beta2 v + (1 - beta2) g²            running mean of its square
        (4)  p <- p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    The divisions by 1 - beta^t undo the pull of m and v towards their start at zero. eps is
    added after the correction of v.

    model          a GPTModel, or {name: array}; `step` changes its arrays in place. They may differ in dtype.
    lr             learning rate; may be set between steps (`optimizer.lr = ...`)
    betas          (beta1, beta2), each in [0, 1)
    eps            keeps (4) from dividing by zero for a weight that has had no gradient yet
    weight_decay   pull towards zero, a share of lr
    groups         parameters with a learning rate or weight decay of their own; the first group that matches a
                   parameter counts, and a parameter that none matches has lr and weight_decay as they are
    trained        whether the parameter of a name is trained; only what is trained has moments

    A model and its optimizer may be copied or pickled together: the copy of the optimizer trains the copy of the
    model. An optimizer of arrays that are parts of other arrays cannot be copied, because NumPy would take the parts
    out of the whole.

    The defaults are PyTorch's. Raises InputError for values out of range, an eps that is 0 in the dtype of a parameter,
    parameters of other dtypes than float32 and float64, nothing to train, and a group that gets no parameter.
    """

    def __init__(
        self,
        model: GPTModel | Mapping[str, Array],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        groups: Sequence[Group] = (),
        *,
        trained: Trained = everything,
    ) -> None:
        self.lr, self.betas, self.weight_decay = lr, two_betas(betas), number("weight_decay", weight_decay)
        self.model = dict(model) if isinstance(model, Mapping) else model
        parameters = {name: array for name, array in _arrays_of(self.model).items() if trained(name)}
        refuse_what_cannot_be_trained(parameters)
        self.eps = positive_eps(eps, parameters)
        self.groups = assigned(groups, parameters)
        self.steps = 0
        self.exp_avg = {name: np.zeros_like(array) for name, array in parameters.items()}
        self.exp_avg_sq = {name: np.zeros_like(array) for name, array in parameters.items()}

    @property
    def lr(self) -> float:
        """The learning rate of the next step. InputError for one that is no finite number of 0 or more."""
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self._lr = number("lr", lr)

    @property
    def parameters(self) -> dict[str, Array]:
        """{name: array} of what is trained: the model's own arrays.

        They are looked up by their names each time. An optimizer that kept the arrays themselves would lose its model
        when both are copied: queries', keys' and values' weights are views, whose copies belong to no model.

        Raises InputError if the model no longer has the parameters that the optimizer was made for.
        """
        arrays = _arrays_of(self.model)
        refuse_changed_model(arrays, self.exp_avg)
        return {name: arrays[name] for name in self.exp_avg}

    def trains(self, name: str) -> bool:
        """Whether the parameter of this name is trained."""
        return name in self.exp_avg

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or pickled. InputError for parts of other arrays, unless they are a model's."""
        if isinstance(self.model, dict):
            refuse_parts_of_arrays(self.parameters)
        return self.__dict__

    def step(self, grads: Mapping[str, Array]) -> None:
        """Update every parameter by its gradient.

        grads   {name: gradient} with exactly the parameters' names and shapes, each of its parameter's dtype or one
                that can be cast to it

        Raises InputError, with everything as it was, for gradients that do not fit and for read-only parameters.
        """
        parameters = self.parameters
        refuse_unfit("gradients", grads, parameters)
        self._refuse_read_only(parameters)
        self.steps += 1
        beta1, beta2 = self.betas
        correction1 = 1 - beta1**self.steps
        correction2 = math.sqrt(1 - beta2**self.steps)

        def block(decay: float, step_size: float, p: Array, g: Array, m: Array, v: Array) -> None:
            g = g.astype(p.dtype, copy=False)  # a narrower g would lose, or overflow, when it is squared
            p *= decay  # (1)
            m += (1 - beta1) * (g - m)  # (2)
            v *= beta2
            v += (1 - beta2) * g * g  # (3)
            denominator = np.sqrt(v)
            denominator /= correction2
            denominator += self.eps
            np.divide(m, denominator, out=denominator)
            denominator *= step_size
            p -= denominator  # (4)

        for name, parameter in parameters.items():
            lr, weight_decay = self._rates(name)
            update = partial(block, 1 - lr * weight_decay, lr / correction1)
            _in_blocks(update, parameter, grads[name], self.exp_avg[name], self.exp_avg_sq[name])

    def _rates(self, name: str) -> tuple[float, float]:
        """The learning rate and the weight decay of a parameter."""
        for group in self.groups:
            if name in group.names:
                weight_decay = self.weight_decay if group.weight_decay is None else group.weight_decay
                return self.lr * group.lr_scale, weight_decay
        return self.lr, self.weight_decay

    def _refuse_read_only(self, parameters: Mapping[str, Array]) -> None:
        read_only = [
            name
            for arrays in (parameters, self.exp_avg, self.exp_avg_sq)
            for name, array in arrays.items()
            if not array.flags.writeable
        ]
        if read_only:
            raise InputError(f"parameters or their moments are read-only: {read_only}; give the optimizer copies")

    # What is saved

    def state_dict(self) -> dict[str, Any]:
        """The step count, the hyper-parameters, the groups by name, and the moments: the optimizer's own arrays."""
        return {
            "step": self.steps,
            "lr": self.lr,
            "betas": list(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "groups": [{**group._asdict(), "names": list(group.names)} for group in self.groups],
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned, groups included; the moments are copied.

        Raises InputError, with everything as it was, for anything that is missing, out of range, or does not fit the
        parameters.
        """
        expected = self.state_dict().keys()
        missing = [key for key in expected if key not in state]
        unexpected = [key for key in state if key not in expected]
        if missing or unexpected:
            raise InputError(f"the optimizer's state does not fit: missing {missing}, unexpected {unexpected}")
        steps = step_count(state["step"])
        lr, weight_decay = (number(name, state[name]) for name in ("lr", "weight_decay"))
        betas = two_betas(state["betas"])
        parameters = self.parameters
        eps = positive_eps(state["eps"], parameters)
        groups = named_groups(state["groups"], parameters)
        for moments in MOMENTS:
            refuse_unfit(moments, state[moments], parameters, same_dtype=True)
            refuse_impossible(moments, state[moments])
        self._refuse_read_only(parameters)
        self.steps, self.lr, self.betas, self.eps, self.weight_decay = steps, lr, betas, eps, weight_decay
        self.groups = groups
        for moments in MOMENTS:
            for name, array in getattr(self, moments).items():
                array[...] = state[moments][name]

    def section(self) -> Section:
        """The section "optimizer" of a checkpoint: `state_dict`, its moments under `exp_avg.NAME`, `exp_avg_sq.NAME`.

        The arrays are the optimizer's own.
        """
        state = self.state_dict()
        arrays = {f"{moments}.{name}": array for moments in MOMENTS for name, array in state.pop(moments).items()}
        return Section(state, arrays)

    def load_section(self, saved: SavedSections) -> None:
        """Continue from the section "optimizer" of a checkpoint. Errors as `load_state_dict`, or if there is none."""
        state = saved.values(SECTION)
        with named_in_errors(saved):
            _refuse_misnamed(saved.layouts(SECTION))
        state |= {moments: {} for moments in MOMENTS}
        for key, array in saved.arrays(SECTION).items():
            moments, _, name = key.partition(".")
            state[moments][name] = array
        with named_in_errors(saved):
            self.load_state_dict(state)


def _arrays_of(model: GPTModel | dict[str, Array]) -> dict[str, Array]:
    """The model's parameters by name, each once."""
    return model if isinstance(model, dict) else model.named_parameters()


def _in_blocks(update: Callable[..., None], parameter: Array, *others: Array) -> None:
    """Block by block if `parameter` lies in memory row after row; whole otherwise, because blocks would be copies."""
    if parameter.flags.c_contiguous and parameter.size and parameter.ndim:
        over_rows(update, parameter, *others)
    else:
        update(*map(np.atleast_1d, (parameter, *others)))


def _refuse_misnamed(arrays: Mapping[str, Any]) -> None:
    misnamed = [key for key in arrays if not key.startswith(tuple(f"{moments}." for moments in MOMENTS))]
    if misnamed:
        raise InputError(f"the optimizer's arrays are named {misnamed}; expected exp_avg.NAME or exp_avg_sq.NAME")
