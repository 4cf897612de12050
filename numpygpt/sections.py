"""Sections: what each part of a run saves, as values and arrays, whatever file holds them.

A part (the model, the optimizer, a random generator, the loop) writes a `Section`, and reads the same section again.
The module of the file knows none of the parts, and no part knows the file.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from numpygpt.errors import InputError
from numpygpt.shapes import Array


class Section(NamedTuple):
    """What one part of a run saves.

    values   what JSON can hold: numbers, texts, True, False, None, lists of these, and dicts of these by text
    arrays   {name: array}
    """

    values: Mapping[str, Any]
    arrays: Mapping[str, Array]


class Layout(NamedTuple):
    """What is known of a saved array before it is read: the name of its dtype in NumPy, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@runtime_checkable
class SavedSections(Protocol):
    """Sections that were saved: a `Checkpoint`, or anything else that has these methods.

    Each method raises InputError for a section that was not saved.
    """

    @property
    def path(self) -> Path:
        """The file that holds the sections, for messages."""

    def __contains__(self, name: object) -> bool:
        """Whether there is a section of that name."""

    def values(self, name: str) -> dict[str, Any]:
        """The section's values."""

    def layouts(self, name: str) -> dict[str, Layout]:
        """{name: dtype and shape} of the section's arrays; none of them is read."""

    def arrays(self, name: str) -> dict[str, Array]:
        """{name: array} of the section; the arrays are new ones."""

    def each_array(self, name: str) -> Iterator[tuple[str, Array]]:
        """Each name and array of the section, in any order, each read when its turn comes."""


def value_of(values: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """`values[name]`, which must be of one of these types. InputError if it is missing or of another type.

    True and False count as bool only, although Python counts them as integers too. An integer is accepted as a float.
    """
    expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
    if name not in values:
        raise InputError(f"{name} is missing; expected {expected}")
    value = values[name]
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        raise InputError(f"{name} is {value!r:.80}; expected {expected}")
    return value


@contextmanager
def named_in_errors(saved: SavedSections) -> Iterator[None]:
    """Within the `with`, an InputError gets a message that begins with the checkpoint that it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"the checkpoint {saved.path} cannot be used: {error}") from error
