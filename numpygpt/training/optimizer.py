"""What all optimizers share: what they train, their groups, what they keep of each parameter, their checks, and saving.

The file of an optimizer is its formula. Such a file declares its hyper-parameters, names the arrays that it keeps of a
parameter, and says what one step does to a block of rows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.parallel import ahead, over_rows
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
    share,
    step_count,
    truth,
    two_betas,
)
from numpygpt.tree import Trained, everything

SECTION = "optimizer"

#: Makes an array of zeros like each of these arrays, where the moments are to be.
Zeros = Callable[[Sequence[Array]], list[Array]]


def in_memory(arrays: Sequence[Array]) -> list[Array]:
    """Zeros in memory, which is where the moments are unless somebody wants them elsewhere."""
    return [np.zeros_like(array) for array in arrays]


class Rates(NamedTuple):
    """The learning rate and the weight decay of one parameter in one step."""

    lr: float
    weight_decay: float


#: How a hyper-parameter is checked, by its name. An eps is checked beside the parameters, too.
CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "lr": number,
    "weight_decay": number,
    "eps": number,
    "betas": lambda name, value: two_betas(value),
    "alpha": share,
    "momentum": share,
    "dampening": share,
    "nesterov": truth,
    "centered": truth,
    "rest_lr_scale": number,
}


class Optimizer:
    """An optimizer without its formula.

    kind       its name, as `--optimizer` and a checkpoint have it
    settings   the names of its hyper-parameters, each an attribute; `CHECKS` says what they may be
    kinds      the arrays that it may keep of a parameter, its moments, by the names that PyTorch has for them

    An optimizer takes these arguments; its own class describes the others.

    model      a GPTModel, or {name: array}; `step` changes its arrays in place. They may differ in dtype
    lr         learning rate; may be set between steps (`optimizer.lr = ...`)
    groups     parameters with a learning rate or weight decay of their own; the first group that matches a parameter
               counts, and a parameter that none matches has lr and weight_decay as they are
    trained    whether the parameter of a name is trained, unless the model has frozen it; only what is trained has
               moments
    zeros      makes the moments; by default in memory (`numpygpt.training.disk_state` has them on a disk)

    A model and its optimizer may be copied or pickled together: the copy of the optimizer trains the copy of the
    model, with its moments in memory. An optimizer of arrays that are parts of other arrays cannot be copied, because
    NumPy would take the parts out of the whole.

    Raises InputError for values out of range, an eps that is 0 in the dtype of a parameter, parameters of other dtypes
    than float32 and float64, nothing to train, and a group that gets no parameter.
    """

    kind: ClassVar[str]
    settings: ClassVar[tuple[str, ...]]
    kinds: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        model: GPTModel | Mapping[str, Array],
        values: Mapping[str, Any],
        groups: Sequence[Group] = (),
        *,
        trained: Trained = everything,
        zeros: Zeros = in_memory,
    ) -> None:
        self._set(self.checked(values))
        self.model = dict(model) if isinstance(model, Mapping) else model
        frozen = getattr(self.model, "frozen", ())
        arrays = _arrays_of(self.model)
        parameters = {name: array for name, array in arrays.items() if trained(name) and name not in frozen}
        refuse_what_cannot_be_trained(parameters)
        _check_eps(values, parameters)
        self.groups = assigned(groups, parameters)
        self.steps = 0
        self._layouts = {name: (array.shape, array.dtype) for name, array in parameters.items()}
        self.moments = self._new_moments(parameters, zeros)

    # What an optimizer's own file says

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The hyper-parameters in their types. InputError for one that is out of range."""
        return {name: CHECKS[name](name, values[name]) for name in cls.settings}

    @classmethod
    def kinds_of(cls, name: str, n_axes: int, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The moments that it keeps of a parameter with this name and so many axes, given its hyper-parameters."""
        return cls.kinds

    def update(self, rates: Rates, p: Array, g: Array, *moments: Array) -> None:
        """Update a block of rows of a parameter, and of its moments, in place. `steps` counts this step already."""
        raise NotImplementedError

    def update_parameter(self, name: str, rates: Rates, p: Array, g: Array, *moments: Array) -> None:
        """Update a whole parameter and its moments in place: block by block, which suits an element-wise formula."""

        def block(p: Array, g: Array, *moments: Array) -> None:
            self.update(rates, p, g.astype(p.dtype, copy=False), *moments)  # a narrower g would overflow when squared

        _in_blocks(block, p, g, *moments)

    # A step

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
        for name, parameter in parameters.items():
            self.update_parameter(name, self.rates_of(name), parameter, grads[name], *self.moments_of(name))

    @property
    def lr(self) -> float:
        """The learning rate of the next step. InputError for one that is no finite number of 0 or more."""
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self._lr = number("lr", lr)

    weight_decay: float

    @property
    def values(self) -> dict[str, Any]:
        """The hyper-parameters by name."""
        return {name: getattr(self, name) for name in self.settings}

    @property
    def parameters(self) -> dict[str, Array]:
        """{name: array} of what is trained: the model's own arrays.

        They are looked up by their names each time. An optimizer that kept the arrays themselves would lose its model
        when both are copied: queries', keys' and values' weights are views, whose copies belong to no model.

        Raises InputError if the model no longer has the parameters that the optimizer was made for.
        """
        arrays = _arrays_of(self.model)
        refuse_changed_model(arrays, self._layouts)
        return {name: arrays[name] for name in self._layouts}

    def trains(self, name: str) -> bool:
        """Whether the parameter of this name is trained."""
        return name in self._layouts

    def moments_of(self, name: str) -> list[Array]:
        """The moments of a parameter, in the order of `kinds`."""
        return [arrays[name] for arrays in self.moments.values() if name in arrays]

    def rates_of(self, name: str) -> Rates:
        """The learning rate and the weight decay of a parameter."""
        for group in self.groups:
            if name in group.names:
                weight_decay = self.weight_decay if group.weight_decay is None else group.weight_decay
                return Rates(self.lr * group.lr_scale, weight_decay)
        return Rates(self.lr, self.weight_decay)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or pickled. InputError for parts of other arrays, unless they are a model's."""
        if isinstance(self.model, dict):
            refuse_parts_of_arrays(self.parameters)
        return self.__dict__

    def _set(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def _new_moments(self, parameters: Mapping[str, Array], zeros: Zeros) -> dict[str, dict[str, Array]]:
        """{kind: {name: zeros}}; a kind that no parameter has is left out."""
        wanted = self._kinds_by_name(self.values)
        pairs = [(kind, name) for kind in self.kinds for name in parameters if kind in wanted[name]]
        made = zeros([parameters[name] for _, name in pairs])
        moments: dict[str, dict[str, Array]] = {}
        for (kind, name), array in zip(pairs, made, strict=True):
            moments.setdefault(kind, {})[name] = array
        return moments

    def _kinds_by_name(self, values: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        return {name: self.kinds_of(name, len(shape), values) for name, (shape, _) in self._layouts.items()}

    def _refuse_read_only(self, parameters: Mapping[str, Array]) -> None:
        read_only = [
            name
            for arrays in (parameters, *self.moments.values())
            for name, array in arrays.items()
            if not array.flags.writeable
        ]
        if read_only:
            raise InputError(f"parameters or their moments are read-only: {read_only}; give the optimizer copies")

    # What is saved

    def state_dict(self) -> dict[str, Any]:
        """The step count, the hyper-parameters, the groups by name, and the moments: the optimizer's own arrays.

        Except for AdamW, the state has the kind of the optimizer, too.
        """
        return {
            **named_kind(self.kind),
            "step": self.steps,
            **saved_values(self.values),
            "groups": [{**group._asdict(), "names": list(group.names)} for group in self.groups],
            **self.moments,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned, groups included; the moments are copied.

        Raises InputError, with everything as it was, for anything that is missing, out of range, or does not fit the
        parameters, and for the state of another optimizer.
        """
        loaded = self._fitting(state)
        for kind in self.moments:
            refuse_impossible(kind, state[kind])
        self._set(loaded)
        for kind, own in self.moments.items():
            for name, array in own.items():
                array[...] = state[kind][name]

    def _fitting(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The step count, the hyper-parameters and the groups of a state, whose moments are looked at, but not read.

        Raises InputError as `load_state_dict`.
        """
        refuse_other_keys(state, self.state_dict())
        steps, values = step_count(state["step"]), self.checked(state)
        parameters = self.parameters
        _check_eps(values, parameters)
        groups = named_groups(state["groups"], parameters)
        if self._kinds_by_name(values) != self._kinds_by_name(self.values):
            raise InputError(f"the state does not fit {self.values}: it is of {values}; make the optimizer with these")
        for kind, own in self.moments.items():
            refuse_unfit(kind, state[kind], {name: parameters[name] for name in own}, same_dtype=True)
        self._refuse_read_only(parameters)
        return {"steps": steps, "groups": groups, **values}

    def section(self) -> Section:
        """The section "optimizer" of a checkpoint: `state_dict`, a moment KIND of the parameter NAME under KIND.NAME.

        The arrays are the optimizer's own.
        """
        state = self.state_dict()
        arrays = {f"{kind}.{name}": array for kind in self.moments for name, array in state.pop(kind).items()}
        return Section(state, arrays)

    def load_section(self, saved: SavedSections) -> None:
        """Continue from the section "optimizer" of a checkpoint. Errors as `load_state_dict`, or if there is none.

        The moments are read twice, one at a time: to check them, and to copy them. So memory need not hold them all.
        """
        state, layouts = saved.values(SECTION), saved.layouts(SECTION)
        with named_in_errors(saved):
            refuse_misnamed(layouts, self.moments)
            state |= {kind: {} for kind in self.moments}
            for key, layout in layouts.items():
                kind, _, name = key.partition(".")
                state[kind][name] = np.broadcast_to(np.empty((), layout.dtype), layout.shape)
            loaded = self._fitting(state)
        for key, array in ahead(saved.each_array(SECTION)):
            kind, _, name = key.partition(".")
            with named_in_errors(saved):
                refuse_impossible(kind, {name: array})
        self._set(loaded)
        for key, array in ahead(saved.each_array(SECTION)):
            kind, _, name = key.partition(".")
            self.moments[kind][name][...] = array


# What a state looks like, for whoever else writes and reads one


def named_kind(kind: str) -> dict[str, str]:
    """What a state has of the kind of its optimizer: nothing for AdamW, which was the only one at first."""
    return {} if kind == "adamw" else {"kind": kind}


def saved_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters in types that JSON has."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def refuse_other_keys(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """InputError unless a state is of the same kind of optimizer as the expected one, and has the same keys."""
    found, own = (given.get("kind", "adamw") for given in (state, expected))
    if found != own:
        raise InputError(f"the optimizer's state is of the kind {found!r:.80}; expected {own!r}")
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        raise InputError(f"the optimizer's state does not fit: missing {missing}, unexpected {unexpected}")


def refuse_misnamed(arrays: Iterable[str], kinds: Iterable[str]) -> None:
    """InputError for arrays that are not named by one of these kinds, a dot and the name of a parameter."""
    misnamed = [key for key in arrays if not key.startswith(tuple(f"{kind}." for kind in kinds))]
    if misnamed:
        names = " or ".join(f"{kind}.NAME" for kind in kinds) or "none"
        raise InputError(f"the optimizer's arrays are named {misnamed}; expected {names}")


def _check_eps(values: Mapping[str, Any], parameters: Mapping[str, Array]) -> None:
    if "eps" in values:
        positive_eps(values["eps"], parameters)


def _arrays_of(model: GPTModel | dict[str, Array]) -> dict[str, Array]:
    """The model's parameters by name, each once."""
    return model if isinstance(model, dict) else model.named_parameters()


def _in_blocks(update: Callable[..., None], parameter: Array, *others: Array) -> None:
    """Block by block if `parameter` lies in memory row after row; whole otherwise, because blocks would be copies."""
    if parameter.flags.c_contiguous and parameter.size and parameter.ndim:
        over_rows(update, parameter, *others)
    else:
        update(*map(np.atleast_1d, (parameter, *others)))
