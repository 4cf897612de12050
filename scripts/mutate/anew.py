"""Mutants of what classes and decorators do at import: the package is imported anew, from the changed text."""

from functools import partial
from importlib.machinery import SourceFileLoader
from typing import Any

import pytest

from mutate import ROOT
from mutate.forks import in_a_fork
from mutate.mutants import Mutant, changed_line, changed_text
from mutate.results import Results, calls_into
from mutate.session import first_failure


class Only:
    """A plugin of pytest that runs these tests alone, in this order, and keeps the name of the first that fails."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.failure: str | None = "the import"

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        collected = {item.nodeid: item for item in items}
        items[:] = [collected[name] for name in self.names if name in collected]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if not session.testsfailed:
            self.failure = first_failure(session.items)
        return True


def _take_for_source(path: str, text: str) -> None:
    """From now on, the import of the module at `path` reads this text, and no compiled file."""
    get_data, path_stats = SourceFileLoader.get_data, SourceFileLoader.path_stats

    def changed_data(loader: Any, file: str) -> bytes:
        return text.encode() if file == path else get_data(loader, file)

    def no_compiled_file(loader: Any, file: str) -> Any:
        if file == path:
            raise OSError("what is compiled is another text")
        return path_stats(loader, file)

    SourceFileLoader.get_data = changed_data  # type: ignore[method-assign,assignment]
    SourceFileLoader.path_stats = no_compiled_file  # type: ignore[method-assign,assignment]


def _first_failure_anew(mutant: Mutant, tests: list[str], options: list[str]) -> str | None:
    _take_for_source(str(ROOT / mutant.module), changed_text(mutant))
    only = Only(tests)
    pytest.main([*sorted({name.split("::")[0] for name in tests}), *options], plugins=[only])
    return only.failure


def try_anew(results: Results, mutants: list[Mutant], options: list[str], seconds: float) -> None:
    """Try each in a fork of this process, which must not have imported the package."""
    for mutant in mutants:
        tests, all_of_them = results.selection([mutant.module], calls_into(mutant.module), results.tests, seconds)
        failure = in_a_fork(partial(_first_failure_anew, mutant, tests, options), 120 + 10 * seconds)
        outcome = "no test" if not tests else "survived" if failure is None else "killed"
        facts = {"outcome": outcome, "test": failure, "tried": len(tests), "all_of_them": all_of_them, "anew": True}
        results.add(mutant, changed_line(mutant), facts)
