"""The record of an operation: all that is needed to check it.

Each operation has a record in `numpygpt.checks.records`, in a file of its own, so that the file of the operation holds
only what a reader needs. The tests and `numpygpt gradcheck` use it, and so can anybody who checks another
implementation of the same operation. Only the oracle in PyTorch is elsewhere (`torchgpt.checks.oracles`), because this
package does not use PyTorch.
"""

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from numpygpt.checks.planting import Bug
from numpygpt.checks.source import Source
from numpygpt.shapes import Array
from numpygpt.tree import everything, named


class Call(NamedTuple):
    """The arguments of a call of an operation.

    arguments   forward's positional arguments by name: float64 arrays or trees of them, token ids, masks, None
    options     forward's keyword arguments
    """

    arguments: Mapping[str, Any]
    options: Mapping[str, Any] = {}

    def changed(self, function: Callable[[Array], Array]) -> "Call":
        """The call with `function` applied to each array, taken as the nodes hold it, not as they show it."""
        return Call(*({name: _changed(function, value) for name, value in part.items()} for part in self))


def _changed(function: Callable[[Array], Array], value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return function(value)
    if isinstance(value, Mapping):
        return {name: _changed(function, child) for name, child in value.items()}
    if not isinstance(value, tuple):
        return value
    children = [_changed(function, child) for child in value]
    return value._make(children) if hasattr(value, "_make") else tuple(children)


class Record(NamedTuple):
    """An operation or layer, and how it is checked.

    module         its module, with the pair `forward` and `backward`
    draw           draws a call from a source of sizes and numbers
    special        calls that every run makes, by what is special about them; or the reason why there is none
    complex_step   makes, with values from a source, the calls whose gradients complex step checks element by element,
                   by what is special about them ("" for a plain call); or the reason why it is not analytic
    bugs           real mistakes in it, which are planted
    controls       changes of it that make no difference, which every check must pass
    """

    module: ModuleType
    draw: Callable[[Source], Call]
    special: Mapping[str, Call] | str
    complex_step: Callable[[Source], Mapping[str, Call]] | str
    bugs: tuple[Bug, ...]
    controls: tuple[Bug, ...] = ()

    @property
    def name(self) -> str:
        """The name of the module."""
        return _last_name(self.module)

    def __repr__(self) -> str:
        return f"<the record of {self.name}>"  # its calls would fill pages


class BugsOnly(NamedTuple):
    """A module that is not an operation, and its bugs.

    why        why it has no forward and backward
    bugs       real mistakes in it, which are planted
    controls   changes of it that make no difference
    """

    module: ModuleType
    why: str
    bugs: tuple[Bug, ...]
    controls: tuple[Bug, ...] = ()

    @property
    def name(self) -> str:
        """The name of the module."""
        return _last_name(self.module)


def _last_name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def missing(module: ModuleType, record: Record | BugsOnly | None, *, has_oracle: bool) -> list[str]:
    """What a module still needs before it counts as checked; empty if it needs nothing.

    has_oracle   whether there is an oracle in PyTorch of the module's name
    """
    if record is None:
        return ["a record: a file of its name in numpygpt/checks/records"]
    needs: list[tuple[str, Any]] = [("a planted bug", record.bugs)]
    is_operation = hasattr(module, "forward") and hasattr(module, "backward")
    if isinstance(record, Record):
        needs += [
            ("forward and backward", is_operation),
            ("a way to draw a call", callable(record.draw)),
            ("a special call, or the reason why there is none", record.special),
            ("a call to check by complex step, or the reason why it is not analytic", record.complex_step),
            ("an oracle: a function of its name in torchgpt/checks/oracles.py", has_oracle),
        ]
    else:
        needs += [
            ("a Record in place of a BugsOnly, for it has forward and backward", not is_operation),
            ("the reason why it has no forward and backward", record.why),
        ]
    needs += [(f"a change of this very module in {bug.name}", _is_in(bug, module)) for bug in record.bugs]
    return [need for need, met in needs if not met]


def _is_in(bug: Bug, module: ModuleType) -> bool:
    """Whether any change of the bug is in the module."""
    return any(f"numpygpt.{change.function}".startswith(f"{module.__name__}:") for change in bug.changes)


def differentiated(operation: Any, call: Call) -> dict[str, Array]:
    """The arrays among the arguments whose gradients the call asks for, by name.

    For an operation, these are the arguments that `wanted` names. For a layer, they are the parameters that are
    `trained`, and its input if `wants_x` is True. An argument that is no field of `Gradients` is a constant, such as a
    label or a weight.
    """
    fields = operation.Gradients._fields if hasattr(operation, "Gradients") else tuple(call.arguments)
    parameters = inspect.signature(operation.forward).parameters
    options = {name: parameter.default for name, parameter in parameters.items()} | dict(call.options)
    trained, wants_x = options.get("trained", everything), options.get("wants_x", True)

    def asked_for(name: str) -> bool:
        argument, _, leaf = name.partition(".")
        if argument not in fields:
            return False
        if argument == "parameters":
            return bool(trained(leaf))
        return argument in options["wanted"] if "wanted" in options else wants_x

    return {
        name: array
        for name, array in named(dict(call.arguments))
        if np.issubdtype(array.dtype, np.inexact) and asked_for(name)
    }
