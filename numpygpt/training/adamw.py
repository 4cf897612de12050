"""AdamW, whose parameters may be in groups with a learning rate and a weight decay of their own."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.parallel import over_rows
from numpygpt.sections import SavedSections, Section, named_in_errors
from numpygpt.shapes import Array

SECTION = "optimizer"
MOMENTS = ("exp_avg", "exp_avg_sq")
#: Enough for any training, and few enough for beta**steps to be computed.
MOST_STEPS = 2**63 - 1


class Group(NamedTuple):
    """Parameters that are trained in a way of their own.

    matches        (name, array) -> whether the parameter belongs to the group
    lr_scale       its learning rate, as a multiple of the optimizer's, so that a schedule moves every group
    weight_decay   its weight decay; None: the optimizer's

    That matrices decay, and biases and norms do not:

        AdamW(model, weight_decay=0.1, groups=[Group(lambda name, array: array.ndim < 2, weight_decay=0.0)])
    """

    matches: Callable[[str, Array], bool]
    lr_scale: float = 1.0
    weight_decay: float | None = None


class NamedGroup(NamedTuple):
    """A group whose parameters are known by name, which is how a checkpoint keeps it."""

    names: tuple[str, ...]
    lr_scale: float
    weight_decay: float | None


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

    model          a GPTModel, or a {name: float array} of what is to be trained; `step` changes its arrays in place.
                   Only what is given has moments. The arrays may differ in dtype.
    lr             learning rate; may be set between steps (`optimizer.lr = ...`)
    betas          (beta1, beta2), each in [0, 1)
    eps            keeps (4) from dividing by zero
    weight_decay   pull towards zero, a share of lr
    groups         parameters with a learning rate or weight decay of their own; the first group that matches a
                   parameter counts, and a parameter that none matches has lr and weight_decay as they are

    The defaults are PyTorch's. Raises InputError for values out of range, parameters that are not floating-point, and
    a group that gets no parameter.
    """

    def __init__(
        self,
        model: GPTModel | Mapping[str, Array],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        groups: Sequence[Group] = (),
    ) -> None:
        self.lr, self.eps = _number("lr", lr), _number("eps", eps)
        self.betas, self.weight_decay = _two_betas(betas), _number("weight_decay", weight_decay)
        self.parameters = dict(model if isinstance(model, Mapping) else model.named_parameters())
        _refuse_what_cannot_be_trained(self.parameters)
        self.groups = _assigned(groups, self.parameters)
        self.steps = 0
        self.exp_avg = {name: np.zeros_like(array) for name, array in self.parameters.items()}
        self.exp_avg_sq = {name: np.zeros_like(array) for name, array in self.parameters.items()}

    def step(self, grads: Mapping[str, Array]) -> None:
        """Update every parameter by its gradient.

        grads   {name: gradient} with exactly the parameters' names and shapes, each of its parameter's dtype or one
                that can be cast to it

        Raises InputError, with everything as it was, for gradients that do not fit and for read-only parameters.
        """
        _refuse_unfit("gradients", grads, self.parameters)
        self._refuse_read_only()
        self.steps += 1
        beta1, beta2 = self.betas
        correction1 = 1 - beta1**self.steps
        correction2 = math.sqrt(1 - beta2**self.steps)

        def block(decay: float, step_size: float, p: Array, g: Array, m: Array, v: Array) -> None:
            g = g.astype(p.dtype, copy=False)
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

        for name, parameter in self.parameters.items():
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

    def _refuse_read_only(self) -> None:
        read_only = [
            name
            for arrays in (self.parameters, self.exp_avg, self.exp_avg_sq)
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
        steps = _step_count(state["step"])
        lr, eps, weight_decay = (_number(name, state[name]) for name in ("lr", "eps", "weight_decay"))
        betas = _two_betas(state["betas"])
        groups = _named_groups(state["groups"], self.parameters)
        for moments in MOMENTS:
            _refuse_unfit(moments, state[moments], self.parameters, same_dtype=True)
            _refuse_impossible(moments, state[moments])
        self._refuse_read_only()
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


def _in_blocks(update: Callable[..., None], parameter: Array, *others: Array) -> None:
    """Block by block if `parameter` lies in memory row after row; whole otherwise, because blocks would be copies."""
    if parameter.flags.c_contiguous and parameter.size and parameter.ndim:
        over_rows(update, parameter, *others)
    else:
        update(*map(np.atleast_1d, (parameter, *others)))


# Checks


INTEGERS = (int, np.integer)
NUMBERS = (*INTEGERS, float, np.floating)


def _is_a(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether it is of one of these types; Python counts True and False as integers, and we do not."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def _number(name: str, value: Any) -> float:
    """The value as a float, which must be finite and not negative."""
    if _is_a(value, NUMBERS) and 0 <= value <= sys.float_info.max:
        return float(value)
    raise InputError(f"{name} is {value!r:.80}; expected a number of 0 or more")


def _two_betas(betas: Any) -> tuple[float, float]:
    if isinstance(betas, list | tuple) and len(betas) == 2:
        beta1, beta2 = betas
        if all(_is_a(beta, NUMBERS) and 0 <= beta < 1 for beta in betas):
            return float(beta1), float(beta2)
    raise InputError(f"betas are {betas!r:.80}; expected two numbers in [0, 1)")


def _step_count(step: Any) -> int:
    if _is_a(step, INTEGERS) and 0 <= step <= MOST_STEPS:
        return int(step)
    raise InputError(f"step is {step!r:.80}; expected an integer of 0 or more")


def _assigned(groups: Sequence[Group], parameters: Mapping[str, Array]) -> list[NamedGroup]:
    """The groups with the names of their parameters. InputError for a group that gets none."""
    left = dict(parameters)
    assigned = []
    for number, group in enumerate(groups):
        names = tuple(name for name, array in left.items() if group.matches(name, array))
        if not names:
            raise InputError(
                f"group {number} of the optimizer matches no parameter that an earlier group has left; "
                f"left are {list(left)}"
            )
        for name in names:
            del left[name]
        assigned.append(_checked(NamedGroup(names, group.lr_scale, group.weight_decay)))
    return assigned


def _named_groups(groups: Any, parameters: Mapping[str, Array]) -> list[NamedGroup]:
    """The groups of a saved state. InputError unless each names parameters that no other group names."""
    if not isinstance(groups, list):
        raise InputError(f"groups are {groups!r:.80}; expected a list")
    found = []
    for group in groups:
        if not isinstance(group, dict) or group.keys() != set(NamedGroup._fields):
            raise InputError(f"a group is {group!r:.80}; expected the keys {', '.join(NamedGroup._fields)}")
        if not isinstance(group["names"], list) or not all(isinstance(name, str) for name in group["names"]):
            raise InputError(f"the names of a group are {group['names']!r:.80}; expected a list of texts")
        found.append(_checked(NamedGroup(tuple(group["names"]), group["lr_scale"], group["weight_decay"])))
    names = [name for group in found for name in group.names]
    if len(names) > len(set(names)) or not parameters.keys() >= set(names):
        raise InputError(f"the groups name {names!r:.200}; expected names of parameters, each once")
    return found


def _checked(group: NamedGroup) -> NamedGroup:
    weight_decay = group.weight_decay
    return NamedGroup(
        group.names,
        _number("lr_scale", group.lr_scale),
        weight_decay if weight_decay is None else _number("weight_decay", weight_decay),
    )


def _refuse_what_cannot_be_trained(parameters: Mapping[str, Any]) -> None:
    bad = [
        f"{name} {array.dtype if isinstance(array, np.ndarray) else type(array).__name__}"
        for name, array in parameters.items()
        if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating)
    ]
    if bad:
        raise InputError(f"parameters to train are {bad}; expected arrays of floating-point numbers")


def _refuse_unfit(what: str, given: Any, parameters: Mapping[str, Array], *, same_dtype: bool = False) -> None:
    """InputError, with every fault listed, unless there is an array of the same shape for each parameter.

    same_dtype   its dtype must be the parameter's; otherwise it is enough that it can be cast to it
    """
    if not isinstance(given, Mapping):
        raise InputError(f"{what} are of type {type(given).__name__}; expected arrays by the parameters' names")
    arrays = {name: array for name, array in given.items() if isinstance(array, np.ndarray)}
    both = [(name, arrays[name], expected) for name, expected in parameters.items() if name in arrays]
    casting: Any = "equiv" if same_dtype else "same_kind"
    faults = {
        "missing": [name for name in parameters if name not in given],
        "unexpected": [name for name in given if name not in parameters],
        "misshaped": [
            f"{name} {array.shape}, expected {expected.shape}"
            for name, array, expected in both
            if array.shape != expected.shape
        ],
        "of another dtype": [
            f"{name} {array.dtype}, expected {expected.dtype}"
            for name, array, expected in both
            if not np.can_cast(array.dtype, expected.dtype, casting)
        ],
        "no arrays": [f"{name} {type(given[name]).__name__}" for name in given if name not in arrays],
    }
    listed = ", ".join(f"{fault} {names}" for fault, names in faults.items() if names)
    if listed:
        raise InputError(f"{what} do not fit the parameters: {listed}")


def _refuse_impossible(moments: str, arrays: Mapping[str, Array]) -> None:
    """InputError for moments that no training can have: not finite, or a negative mean of squares."""
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if moments == "exp_avg_sq":
        bad += [name for name, array in arrays.items() if (array < 0).any()]
    if bad:
        raise InputError(f"{moments} of {bad} cannot be: expected finite values, and squares of 0 or more")


def _refuse_misnamed(arrays: Mapping[str, Any]) -> None:
    misnamed = [key for key in arrays if not key.startswith(tuple(f"{moments}." for moments in MOMENTS))]
    if misnamed:
        raise InputError(f"the optimizer's arrays are named {misnamed}; expected exp_avg.NAME or exp_avg_sq.NAME")
