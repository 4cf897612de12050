"""A change of a module's text, made in the running process: functions get changed code, defaults and constants."""

import gc
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import NamedTuple

import numpy as np

from mutate import ROOT

#: What a module may define that another value can take the place of.
CONSTANTS = (bool, int, float, str, tuple, list, dict, frozenset, set, np.ndarray, type(None))


class Change(NamedTuple):
    """What a change of the text of a module changes.

    path        the module's file
    functions   the code of each function that differs, before and after; none if `outside` is there
    outside     the changed code of the module, if it differs in what runs at import; else None
    """

    path: str
    functions: list[tuple[CodeType, CodeType]]
    outside: CodeType | None


def change(path: Path, text: str) -> Change:
    """What differs if the module had this text.

    SyntaxError   the text is no Python
    """
    own, changed = _compiled(str(path), path.read_text()), _compiled(str(path), text)
    pairs = list(zip(own, changed, strict=False))
    bodies = [(old, new) for old, new in pairs if not _is_function(old)]
    if len(own) != len(changed) or any(_by_itself(old) != _by_itself(new) for old, new in bodies):
        return Change(str(path), [], changed[0])
    return Change(str(path), [(old, new) for old, new in pairs if _is_function(old) and old != new], None)


@lru_cache(4)
def _compiled(path: str, text: str) -> list[CodeType]:
    """The module's code, and that of all functions and classes, in the order of the text."""
    with warnings.catch_warnings(action="ignore"):  # a change may compare a literal by identity
        return list(_parts(compile(text, path, "exec", dont_inherit=True)))


def _parts(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)


def _is_function(code: CodeType) -> bool:
    """Not the body of a module or class, which runs once, at import."""
    return bool(code.co_flags & CO_OPTIMIZED)


def _by_itself(code: CodeType) -> tuple[object, ...]:
    """What the code does, without that of the functions that it defines."""
    constants = [one.co_name if isinstance(one, CodeType) else (type(one), str(one)) for one in code.co_consts]
    return code.co_code, code.co_names, constants


def name_of(code: CodeType) -> str:
    """A name for a function that stays the same in all processes, and if the lines above it change."""
    return f"{code.co_filename.removeprefix(f'{ROOT}/')}:{code.co_qualname}"


def called_functions(codes: set[CodeType], folder: str) -> list[str]:
    """The names of the functions among these that come from this folder."""
    return sorted({name_of(code) for code in codes if code.co_filename.startswith(folder) and _is_function(code)})


def functions_of(folder: str) -> list[FunctionType]:
    """Every function of this process that comes from this folder."""
    return [
        thing
        for thing in gc.get_objects()
        if type(thing) is FunctionType and thing.__code__.co_filename.startswith(folder)
    ]


def make(change: Change, functions: list[FunctionType]) -> tuple[list[str], bool]:
    """Make the change: the names of the functions that are others now, and whether any constant is another one.

    What classes and decorators do at import stays as it is, and so do names that other modules gave to a constant. A
    function whose code is not what its text says, or that is not in the process yet, stays as it is, too.
    """
    changed = [(function, new) for old, new in change.functions for function in functions if function.__code__ == old]
    for function, new in changed:
        function.__code__ = new
    names = [name_of(old) for old, _ in change.functions] if changed else []
    if change.outside is None:
        return names, False
    module = next(one for one in list(sys.modules.values()) if getattr(one, "__file__", None) == change.path)
    anew = ModuleType(module.__name__)
    anew.__dict__.update(__file__=change.path, __package__=module.__package__)
    exec(change.outside, anew.__dict__)
    return [*names, *_take_defaults(functions, anew)], _take_constants(module, anew)


def _take_defaults(functions: list[FunctionType], anew: ModuleType) -> list[str]:
    """Functions get the defaults that they have in the module `anew`; the names of those that had others."""
    theirs = {one.__code__: one for one in functions_of(str(anew.__file__)) if one.__globals__ is vars(anew)}
    names = []
    for function in functions:
        other = theirs.get(function.__code__, function)
        defaults = other.__defaults__, other.__kwdefaults__
        if repr(defaults) != repr((function.__defaults__, function.__kwdefaults__)):
            function.__defaults__, function.__kwdefaults__ = defaults
            names.append(name_of(function.__code__))
    return names


def _take_constants(module: ModuleType, anew: ModuleType) -> bool:
    """All modules that have a constant of `module` by its name get that of `anew`; whether any differs."""
    differs = False
    for name, value in vars(anew).items():
        own = vars(module).get(name)
        if isinstance(value, CONSTANTS) and not name.startswith("__") and repr(value) != repr(own):
            differs = True
            for one in list(sys.modules.values()):
                if getattr(one, "__dict__", {}).get(name) is own:
                    setattr(one, name, value)
    return differs
