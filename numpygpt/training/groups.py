"""Groups of parameters, each with a learning rate and a weight decay of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from numpygpt.errors import InputError
from numpygpt.shapes import Array
from numpygpt.training.optimizer_checks import number


class Group(NamedTuple):
    """Parameters that are trained in a way of their own.

    matches        (name, array) -> whether the parameter belongs to the group
    lr_scale       its learning rate, as a multiple of the optimizer's, so that a schedule moves every group
    weight_decay   its weight decay; None: the optimizer's

    With this group, matrices decay, and biases and norms do not:

        AdamW(model, weight_decay=0.1, groups=[Group(lambda name, array: array.ndim < 2, weight_decay=0.0)])
    """

    matches: Callable[[str, Array], bool]
    lr_scale: float = 1.0
    weight_decay: float | None = None


def groups_of(decay: str) -> list[Group]:
    """The groups of a run with the option `decay`: with "matrices", biases and norms do not decay; with "all", they do.

    Decay pulls a weight towards zero, which is where the products of a matrix become small. A norm's scale has its
    neutral value at 1. GPT-3 (Brown et al. 2020, arXiv:2005.14165) does not say what decays; the split is that of
    minGPT and nanoGPT, by the number of axes, so that embeddings decay as matrices do.
    """
    return [Group(lambda name, array: array.ndim < 2, weight_decay=0.0)] if decay == "matrices" else []


def with_members(groups: Sequence[Group], parameters: Mapping[str, Array]) -> list[Group]:
    """Those of the groups that match a parameter. Adapters, for example, have neither biases nor norms."""
    return [group for group in groups if any(group.matches(name, array) for name, array in parameters.items())]


class NamedGroup(NamedTuple):
    """A group that has its parameters by name. This is how a checkpoint keeps a group."""

    names: tuple[str, ...]
    lr_scale: float
    weight_decay: float | None


def assigned(groups: Sequence[Group], parameters: Mapping[str, Array]) -> list[NamedGroup]:
    """The groups with the names of their parameters. A parameter goes to the first group that matches it.

    Raises InputError for a group that gets no parameter.
    """
    left = dict(parameters)
    named = []
    for position, group in enumerate(groups):
        names = tuple(name for name, array in left.items() if group.matches(name, array))
        if not names:
            raise InputError(
                f"group {position} of the optimizer matches no parameter that an earlier group has left; "
                f"left are {list(left)}"
            )
        for name in names:
            del left[name]
        named.append(_named_group(names, group.lr_scale, group.weight_decay))
    return named


def named_groups(groups: Any, parameters: Mapping[str, Array]) -> list[NamedGroup]:
    """The groups of a saved state. InputError for anything else, and if two groups name the same parameter."""
    if not isinstance(groups, list):
        raise InputError(f"groups are {groups!r:.80}; expected a list")
    found = []
    for group in groups:
        if not isinstance(group, dict) or group.keys() != set(NamedGroup._fields):
            raise InputError(f"a group is {group!r:.80}; expected the keys {', '.join(NamedGroup._fields)}")
        if not isinstance(group["names"], list) or not all(isinstance(name, str) for name in group["names"]):
            raise InputError(f"the names of a group are {group['names']!r:.80}; expected a list of texts")
        found.append(_named_group(tuple(group["names"]), group["lr_scale"], group["weight_decay"]))
    names = [name for group in found for name in group.names]
    if len(names) > len(set(names)) or not parameters.keys() >= set(names):
        raise InputError(f"the groups name {names!r:.200}; expected names of parameters, each once")
    return found


def _named_group(names: tuple[str, ...], lr_scale: Any, weight_decay: Any) -> NamedGroup:
    decay = None if weight_decay is None else number("weight_decay", weight_decay)
    return NamedGroup(names, number("lr_scale", lr_scale), decay)
