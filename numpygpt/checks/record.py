"""The record of an operation: all that is needed to check it.

Each operation has a record in `numpygpt.checks.records`, a file of its own, so that the operation's file stays what a
reader reads. Whoever checks an operation goes by it: the tests, `numpygpt gradcheck`, and whatever runs another
implementation of the same operation. Only the oracle in PyTorch stands elsewhere (`torchgpt.checks.oracles`), because
this package does without PyTorch.
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
    """What an operation is called with.

    arguments   forward's positional arguments by name: float64 arrays or trees of them, token ids, masks, None
    options     its keyword arguments
    """

    arguments: Mapping[str, Any]
    options: Mapping[str, Any] = {}

    def changed(self, function: Callable[[Array], Array]) -> "Call":
        """The call with `function` applied to each array, as the nodes hold it, which need not be as they show it."""
        return Call(*({name: _changed(function, value) for name, value in part.items()} for part in self))


def _changed(function: Callable[[Array], Array], value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return function(value)
    if not isinstance(value, tuple):
        return value
    children = [_changed(function, child) for child in value]
    return value._make(children) if hasattr(value, "_make") else tuple(children)


class Record(NamedTuple):
    """An operation or layer, and how it is checked.

    module         its module, with the pair `forward` and `backward`
    draw           draws a call from a source of sizes and numbers
    special        calls that every run makes, by what is special about them; or the reason why there is none
    complex_step   makes, with numbers from a source, the calls whose gradients complex step checks element by element,
                   by what is special about them ("" for a plain call); or the reason why it is not analytic
    bugs           real mistakes in it, to be planted
    controls       changes of it that make no difference
    """

    module: ModuleType
    draw: Callable[[Source], Call]
    special: Mapping[str, Call] | str
    complex_step: Callable[[Source], Mapping[str, Call]] | str
    bugs: tuple[Bug, ...]
    controls: tuple[Bug, ...] = ()

    @property
    def name(self) -> str:
        """The module's."""
        return _last_name(self.module)

    def __repr__(self) -> str:
        return f"<the record of {self.name}>"  # its calls would fill pages


class BugsOnly(NamedTuple):
    """A module that is no operation, with its bugs.

    why   it has no forward and backward
    """

    module: ModuleType
    why: str
    bugs: tuple[Bug, ...]
    controls: tuple[Bug, ...] = ()

    @property
    def name(self) -> str:
        """The module's."""
        return _last_name(self.module)


def _last_name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def missing(module: ModuleType, record: Record | BugsOnly | None, *, has_oracle: bool) -> list[str]:
    """What a module still needs before it counts as checked; empty if nothing.

    has_oracle   whether there is an oracle in PyTorch by its name
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

    These are the arguments named by `wanted`; and for a layer the parameters that are `trained`, and its input where
    `wants_x` says so.
    """
    parameters = inspect.signature(operation.forward).parameters
    options = {name: parameter.default for name, parameter in parameters.items()} | dict(call.options)
    trained, wants_x = options.get("trained", everything), options.get("wants_x", True)

    def asked_for(name: str) -> bool:
        argument, _, leaf = name.partition(".")
        if argument == "parameters":
            return bool(trained(leaf))
        return argument in options["wanted"] if "wanted" in options else wants_x

    return {
        name: array
        for name, array in named(dict(call.arguments))
        if np.issubdtype(array.dtype, np.inexact) and asked_for(name)
    }
