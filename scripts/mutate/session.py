"""A plugin of pytest which tries mutants instead of running the tests, each in a fork of the process that has them."""

import gc
import signal
import sys
import time
from itertools import groupby
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from mutate import ROOT, code
from mutate.forks import Ended, in_a_fork
from mutate.mutants import Mutant, changed_line, changed_text
from mutate.results import Results, calls_into

OURS = f"{ROOT}/numpygpt/"
#: Seconds: a test that takes longer is not used, and a file of tests gets this long to be measured.
LONGEST, LONGEST_FILE = 20.0, 1200.0


def first_failure(items: list[pytest.Item]) -> str | None:
    """The name of the first test that fails."""
    for item, following in zip(items, [*items[1:], None], strict=True):
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
            return item.nodeid
    return None


class TooLong(BaseException):
    """A test takes longer than LONGEST."""


def _too_long(*_: object) -> None:
    raise TooLong


def measured(items: list[pytest.Item]) -> dict[str, Any]:
    """Of each test: whether it passes, the seconds of computing that it takes, and our functions that it calls."""
    signal.signal(signal.SIGALRM, _too_long)
    found = {}
    for item, following in zip(items, [*items[1:], None], strict=True):
        called: set[CodeType] = set()

        def note(frame: FrameType, event: str, argument: object, called: set[CodeType] = called) -> None:
            called.add(frame.f_code)

        started = time.process_time()
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        sys.settrace(note)
        reports = runtestprotocol(item, log=False, nextitem=following)
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        found[item.nodeid] = {
            "passed": all(report.passed for report in reports),
            "seconds": round(time.process_time() - started, 4),
            "calls": code.called_functions(called, OURS),
        }
    return found


class Session:
    """The plugin. Tests that `results` does not know are measured first."""

    def __init__(self, results: Results, mutants: list[Mutant], seconds: float) -> None:
        self.results, self.mutants, self.seconds = results, mutants, seconds
        self.items: dict[str, pytest.Item] = {}
        self.functions: list[FunctionType] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # one folder for all forks
        self.items = {item.nodeid: item for item in session.items}
        self.measure()
        gc.collect()
        self.functions = code.functions_of(OURS)
        gc.freeze()
        for mutant in self.mutants:
            self.attempt(mutant)
        return True

    def measure(self) -> None:
        """Measure each file of tests in a fork of its own."""
        unknown = [item for name, item in self.items.items() if name not in self.results.tests]
        for _, group in groupby(unknown, lambda item: item.path):
            items = list(group)
            found = in_a_fork(lambda items=items: measured(items), LONGEST_FILE)  # type: ignore[misc]
            if isinstance(found, Ended):
                found = {item.nodeid: {"passed": False, "seconds": 0, "calls": []} for item in items}
            self.results.add_tests(found)

    def attempt(self, mutant: Mutant) -> None:
        """Try a mutant in a fork, and write down what comes of it."""
        try:
            change = code.change(ROOT / mutant.module, changed_text(mutant))
        except SyntaxError:
            self.results.add(mutant, changed_line(mutant), {"outcome": "no Python"})
            return
        if not change.functions and change.outside is None:
            self.results.add(mutant, changed_line(mutant), {"outcome": "same code"})
            return
        found = in_a_fork(lambda: self.tried(mutant, change), 20 + 10 * self.seconds)
        if isinstance(found, Ended):
            found = {"outcome": "killed", "test": found}
        self.results.add(mutant, changed_line(mutant), found)

    def tried(self, mutant: Mutant, change: code.Change) -> dict[str, Any]:
        """Change this process, and run the tests that call what differs, until one fails."""
        try:
            names, constants = code.make(change, self.functions)
        except Exception as error:
            return {"outcome": "killed", "test": f"{type(error).__name__} at import"}
        if not names and not constants:
            return {"outcome": "at import"}
        calls = names.__contains__ if not constants else calls_into(mutant.module)
        tests, all_of_them = self.results.selection([*names, mutant.module], calls, self.items, self.seconds)
        if not tests:
            return {"outcome": "no test", "functions": names}
        started = time.process_time()
        failure = first_failure([self.items[name] for name in tests])
        seconds = round(time.process_time() - started, 4)
        outcome = "survived" if failure is None else "killed"
        return {
            "outcome": outcome,
            "test": failure,
            "functions": names,
            "tried": len(tests),
            "all_of_them": all_of_them,
            "seconds": seconds,
            "first": failure == tests[0],
        }
