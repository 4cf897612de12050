"""Finding an operation that somebody names: `package.module:operation`.

The name stands for the first of these that there is:

    what another package knows how to call   a torch.autograd.Function, a function of JAX: an entry point of the group
                                             `numpygpt.gradient_pairs`, named as the package whose objects it takes
    an object with forward and backward      a module, a class, an instance; without `:operation`, the module itself
    two functions of the module              operation_forward and operation_backward

Inputs come from a function `example(rng)` of a numpy.random.Generator, in a form that `numpygpt.checks.pairs` lists:
the object's own `example`, or the module's `operation_example` or `example`. The operations of numpygpt need none.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from numpygpt.checks.pairs import called, place_of
from numpygpt.checks.records import OPERATIONS
from numpygpt.checks.source import at_random
from numpygpt.errors import InputError

Pair = tuple[Callable[..., Any], Callable[..., Any]]

#: The group of entry points by which other packages bring their functions: each takes an object, and returns the pair
#: of forward and backward that it stands for, or None.
BROUGHT = "numpygpt.gradient_pairs"

EXPECTED = (
    "expected an object with forward and backward, two functions NAME_forward and NAME_backward, a "
    "torch.autograd.Function, or a jax.custom_vjp or jax.jit"
)


class Operation(NamedTuple):
    """A pair that was found, and where its inputs come from; None if it has no example."""

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    example: Callable[[np.random.Generator], Any] | None

    def inputs(self, rng: np.random.Generator) -> Any:
        """The inputs of its example. InputError if it has none, or if it raises an exception."""
        if self.example is None:
            module = self.name.partition(":")[0]
            raise InputError(
                f"{module} has no function example(rng) for the inputs of {self.name}; write one that returns a dict "
                f"of them, or give their shapes: --shape x=2,5"
            )
        return called("example", self.example, rng)


def find(name: str) -> Operation:
    """The operation of that name. InputError if there is none."""
    module_name, _, path = name.partition(":")
    module = imported(module_name)
    target = _attribute(module, path)
    pair = _brought(target) or _own(target) or (_two_functions(module, path) if path else None)
    if pair is None:
        raise InputError(f"{name} is {_kind_of(target, path)}; {EXPECTED}")
    forward, backward = pair
    return Operation(name, forward, backward, _example_of(module, path, target))


def imported(name: str) -> ModuleType:
    """The module of that name, of an installed package or of the current folder."""
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"{name!r} is no name of a module; expected package.module:operation")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        return import_module(name)
    except SystemExit as error:
        raise InputError(f"importing {name} ends the program: {error!r}{place_of(error)}") from error
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise InputError(f"there is no module {error.name}, neither installed nor in this folder") from error
        raise InputError(f"importing {name} raises {type(error).__name__}: {error}{place_of(error)}") from error


_ABSENT = object()


def _attribute(module: ModuleType, path: str) -> Any:
    """What the module has at this path; _ABSENT if there is nothing."""
    found: Any = module
    for part in path.split(".") if path else ():
        found = getattr(found, part, _ABSENT)
    return found


def _brought(target: Any) -> Pair | None:
    """What an adapter makes of the object. Only of a package that is loaded can it be an object."""
    for entry in entry_points(group=BROUGHT):
        if entry.name in sys.modules:
            pair: Pair | None = entry.load()(target)
            if pair is not None:
                return pair
    return None


def _own(target: Any) -> Pair | None:
    return _if_callable(getattr(target, "forward", None), getattr(target, "backward", None))


def _two_functions(module: ModuleType, path: str) -> Pair | None:
    return _if_callable(*(_attribute(module, f"{path}_{direction}") for direction in ("forward", "backward")))


def _if_callable(forward: Any, backward: Any) -> Pair | None:
    return (forward, backward) if callable(forward) and callable(backward) else None


def _kind_of(target: Any, path: str) -> str:
    if target is _ABSENT:
        return "not there"
    if isinstance(target, ModuleType):
        return "a module without forward and backward"
    if callable(target):
        return f"a {type(target).__name__} without a backward"
    return f"a {type(target).__name__}"


def _example_of(module: ModuleType, path: str, target: Any) -> Callable[[np.random.Generator], Any] | None:
    own = getattr(target, "example", None)
    candidates = [own, getattr(module, f"{path}_example", None) if path else None, getattr(module, "example", None)]
    for candidate in candidates:
        if callable(candidate):
            return candidate
    for record in OPERATIONS.values():
        if record.module is target:
            return example_of_record(record)
    return None


def example_of_record(record: Any) -> Callable[[np.random.Generator], Any]:
    """A function that gives the inputs of the record's first call for complex step."""

    def example(rng: np.random.Generator) -> dict[str, Any]:
        source = at_random(int(rng.integers(2**32)))
        special = record.complex_step
        call = record.draw(source) if isinstance(special, str) else next(iter(special(source).values()))
        return {**call.arguments, **call.options}

    return example
