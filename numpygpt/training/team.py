"""The processes that compute a training run together; a run in NumPy has one.

All processes of a run go through the same loop. What a run writes, only the first of them writes.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

Result = TypeVar("Result")


@runtime_checkable
class Team(Protocol):
    """The processes of a run, as one of them sees them. All of them have to make the same calls in the same order."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and talks to a person."""

    @property
    def size(self) -> int:
        """How many processes there are."""

    def any(self, flag: bool) -> bool:
        """Whether any process says True."""

    def first_does(self, action: Callable[[], Result]) -> Result:
        """The result of the action, which only the first process does. All raise the InputError that it raises."""

    def agree(self, action: Callable[[], Result]) -> Result:
        """This process's result of the action, which each does. All raise the InputError of the first that raises."""


class OneProcess:
    """The team of a run that one process computes."""

    is_first = True
    size = 1

    def any(self, flag: bool) -> bool:
        """See `Team`."""
        return flag

    def first_does(self, action: Callable[[], Result]) -> Result:
        """See `Team`."""
        return action()

    def agree(self, action: Callable[[], Result]) -> Result:
        """See `Team`."""
        return action()
