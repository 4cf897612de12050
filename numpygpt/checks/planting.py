"""Planting bugs: mistakes that people made in GPTs that they wrote or ported, each a small named change of our code.

    with planted(BUGS["embedding_loses_repeats"]):
        model.loss_and_grads(inputs, targets)          # now with the bug

A bug is in the code within the `with` block and gone after it. The tests plant every bug and demand that it is caught.
An experimenter plants one to see how small an error a check can find. A porter compares its symptoms with their own.
The bugs themselves are in `numpygpt.checks.records`, each in the file of its operation.
"""

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FunctionType
from typing import Any, NamedTuple


class Change(NamedTuple):
    """Replace `original`, which stands exactly once in the source of a function, by `changed`.

    function   "module:name" or "module:Class.name", inside numpygpt
    """

    function: str
    original: str
    changed: str


class Bug(NamedTuple):
    """A mistake.

    what          what goes wrong, in words
    seen_at       where it was met: a project and the number of its issue, as in pytorch#41508
    first_wrong   the first tensor that it spoils
    properties    the kinds of checks that see it (`numpygpt.checks.records` explains both)
    changes       the changes of the code that plant it
    """

    name: str
    what: str
    seen_at: str
    first_wrong: str
    properties: tuple[str, ...]
    changes: tuple[Change, ...]


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """Within the `with`, the bug is in the code.

    Only one thread at a time may use this, because the functions themselves are changed. Raises LookupError if a change
    does not fit the source.
    """
    functions = {change.function: _function(change.function) for change in bug.changes}
    sound = {path: function.__code__ for path, function in functions.items()}
    changed = {
        path: _changed_code(function, [change for change in bug.changes if change.function == path])
        for path, function in functions.items()
    }
    try:
        for path, function in functions.items():
            function.__code__ = changed[path]  # everybody who has the function, under any name, gets the change
        yield
    finally:
        for path, function in functions.items():
            function.__code__ = sound[path]


def _changed_code(function: FunctionType, changes: list[Change]) -> CodeType:
    source = _source(function.__code__)
    for change in changes:
        if source.count(change.original) != 1:
            raise LookupError(
                f"{change.function} has {source.count(change.original)} times, not once: {change.original!r}"
            )
        source = source.replace(change.original, change.changed)
    definitions: dict[str, Any] = {}
    exec(source, function.__globals__, definitions)
    changed: FunctionType = definitions[function.__name__]
    return changed.__code__


@cache
def _source(code: CodeType) -> str:
    """The source of a sound function, which takes longer to find than to compile."""
    return textwrap.dedent(inspect.getsource(code))


def _function(path: str) -> FunctionType:
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(f"numpygpt.{module}")
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    found = inspect.unwrap(getattr(found, "__func__", found))
    assert isinstance(found, FunctionType), path
    return found
