"""Planting bugs: real mistakes of hand-written and ported GPTs, each a small named change of the real code.

    with planted(BUGS["embedding_loses_repeats"]):
        model.loss_and_grads(inputs, targets)          # now with the bug

A bug is planted for the length of the `with` block and gone after it. The tests plant every one and demand that it is
caught; an experimenter plants one to see how small an error a check can see; a porter compares the symptom with their
own. The bugs themselves stand in `numpygpt.checks.records`, each in the file of its operation.
"""

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
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
    """A mistake, where it was met, what goes wrong first and which checks see it."""

    name: str
    what: str
    seen_at: str
    first_wrong: str
    properties: tuple[str, ...]
    changes: tuple[Change, ...]


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """The bug is in the code inside the block.

    Not for several threads at once: the functions themselves are changed.
    """
    functions = {change.function: _function(change.function) for change in bug.changes}
    sound = {path: function.__code__ for path, function in functions.items()}
    changed = {
        path: _changed_code(function, [change for change in bug.changes if change.function == path])
        for path, function in functions.items()
    }
    try:
        for path, function in functions.items():
            function.__code__ = changed[path]  # whoever holds the function, under whatever name, gets the change
        yield
    finally:
        for path, function in functions.items():
            function.__code__ = sound[path]


def _changed_code(function: FunctionType, changes: list[Change]) -> CodeType:
    source = textwrap.dedent(inspect.getsource(function))
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


def _function(path: str) -> FunctionType:
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(f"numpygpt.{module}")
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    found = inspect.unwrap(getattr(found, "__func__", found))
    assert isinstance(found, FunctionType), path
    return found
