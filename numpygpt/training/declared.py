"""Options that are declared once: name, type, default, the values that they may have, and their line of help.

The options of a command are the fields of a frozen dataclass, each made by `option`. `numpygpt.commands.model_options`
turns them into options of the command line.
"""

import sys
from dataclasses import field, fields
from numbers import Integral, Real
from reprlib import repr as shortened
from typing import Any, NamedTuple, get_args

from numpygpt.errors import InputError

#: No count of a training run needs to be larger, and float64 is exact for arithmetic with counts up to this one.
LARGEST_COUNT = 10**12


class Declaration(NamedTuple):
    """What is declared of an option in addition to its name, its type and its default.

    meaning      what it is, for the command's help
    smallest     the smallest number that it may be; None: no limit is checked here
    choices      the texts that it may be; None: any text
    changeable   whether a resumed run may change it
    metavar      what stands for its value in the command's help; None: its name
    """

    meaning: str
    smallest: int | None = None
    choices: tuple[str, ...] | None = None
    changeable: bool = False
    metavar: str | None = None


def option(default: Any, meaning: str, **declared: Any) -> Any:
    """A field of a class of options; `declared` are fields of `Declaration`."""
    return field(default=default, metadata={"declaration": Declaration(meaning, **declared)})


def declaration_of(options: type, name: str) -> Declaration:
    """The declaration of the option of this name in a class of options."""
    found: Declaration = _field(options, name).metadata["declaration"]
    return found


def check_options(options: Any) -> None:
    """Bring every option of an object to its declared type, as `checked` does. For its `__post_init__`."""
    for declared in fields(options):
        value = checked(type(options), declared.name, getattr(options, declared.name))
        object.__setattr__(options, declared.name, value)


def _field(options: type, name: str) -> Any:
    return next(declared for declared in fields(options) if declared.name == name)


def checked(options: type, name: str, value: Any) -> Any:
    """The value of the option of this name in a class of options, in its declared type.

    Raises InputError for a value of another type, and for one that is out of range.
    """
    kind, said = _field(options, name).type, declaration_of(options, name)
    if value is None and type(None) in get_args(kind):
        return None
    if kind in (int, int | None):
        return _count(name, said, value)
    if kind in (float, float | None):
        return _measure(name, said, value)
    if kind == tuple[str, ...]:
        if not (isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)):
            raise InputError(f"{name} is {shortened(value)}; expected a list of texts")
        return tuple(value)
    if said.choices is not None and value not in said.choices:
        raise InputError(f"{name} is {shortened(value)}; expected one of: {', '.join(said.choices)}")
    is_switch = kind in (bool, bool | None)
    if not isinstance(value, bool if is_switch else str):
        raise InputError(f"{name} is {shortened(value)}; expected {'True or False' if is_switch else 'a text'}")
    return value


def _count(name: str, said: Declaration, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} is {shortened(value)}; expected an integer")
    count = int(value)
    if said.smallest is not None and count < said.smallest:
        least = "0 or more" if said.smallest == 0 else f"at least {said.smallest}"
        raise InputError(f"{name} is {shortened(count)}; expected {least}")
    if said.smallest is not None and count > LARGEST_COUNT:
        raise InputError(f"{name} is {shortened(count)}; expected at most {LARGEST_COUNT:,}")
    return count


def _measure(name: str, said: Declaration, value: Any) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not (said.smallest or 0) <= value <= sys.float_info.max:
        raise InputError(f"{name} is {shortened(value)}; expected a finite number of {said.smallest or 0} or more")
    return float(value)
