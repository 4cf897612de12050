"""Sections under other names: a second model of a run, read as the first one is."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpygpt.sections import Layout, SavedSections
from numpygpt.shapes import Array


class Renamed:
    """`SavedSections` in which a section that is asked for by one name is the one that was saved under another.

    names   {the name that is asked for: the name that it was saved under}; other sections keep their names
    """

    def __init__(self, saved: SavedSections, names: Mapping[str, str]) -> None:
        self._saved, self._names = saved, names

    @property
    def path(self) -> Path:
        """See `SavedSections`."""
        return self._saved.path

    def __contains__(self, name: object) -> bool:
        return self._names.get(str(name), name) in self._saved

    def values(self, name: str) -> dict[str, Any]:
        """See `SavedSections`."""
        return self._saved.values(self._names.get(name, name))

    def layouts(self, name: str) -> dict[str, Layout]:
        """See `SavedSections`."""
        return self._saved.layouts(self._names.get(name, name))

    def arrays(self, name: str) -> dict[str, Array]:
        """See `SavedSections`."""
        return self._saved.arrays(self._names.get(name, name))

    def each_array(self, name: str) -> Iterator[tuple[str, Array]]:
        """See `SavedSections`."""
        return self._saved.each_array(self._names.get(name, name))
