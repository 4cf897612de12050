"""A check of the fields of named tuples.

jaxtyping's import hook checks the annotations of functions and dataclasses, but not those of a NamedTuple's fields.
`check_fields` checks these when a tuple is made by its constructor: what an operation saves, its gradients, the nodes
of parameters. `_make` and `_replace` stay unchecked, because they make nodes whose leaves are not arrays of the
declared shape, such as gradients of which some are None. Arrays whose elements have no bytes stay unchecked too: such
an array only stands for a shape, when a checkpoint is compared with a model that is not made.
"""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from beartype import beartype

from parity_tests.annotations import checked

#: The rooms and modules whose named tuples hold arrays.
CHECKED = ("numpygpt.ops", "numpygpt.layers", "numpygpt.objectives", "numpygpt.model.body", "numpygpt.model.gpt")


def check_fields() -> None:
    """From now on, a named tuple of these modules can only be made of what its fields declare."""
    for name in CHECKED:
        module = import_module(name)
        if hasattr(module, "__path__"):
            for inner in iter_modules(module.__path__):
                _check_fields_of(import_module(f"{name}.{inner.name}"))
        else:
            _check_fields_of(module)


def _check_fields_of(module: ModuleType) -> None:
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, tuple) and value.__module__ == module.__name__:
            value.__new__ = _checked(value.__new__)


def _checked(new: Callable[..., Any]) -> Callable[..., Any]:
    checked_new = checked(new, typechecker=beartype)

    def new_or_checked_new(kind: type, *fields: Any, **named_fields: Any) -> Any:
        shapes_alone = any(getattr(field, "nbytes", None) == 0 and field.size for field in fields)
        return (new if shapes_alone else checked_new)(kind, *fields, **named_fields)

    return new_or_checked_new
