"""A file of what is known of an implementation: what is not asked, and what fails.

    [[skip]]
    case = "*dropout*"               # a pattern of the names of cases; without it, all
    reason = "there is no dropout"

    [[fail]]
    rung = "generation"              # a pattern of rungs; without it, all
    case = "drawn-*"
    reason = "the cache forgets the first key"

A skipped rung is not judged; a case whose rungs are all skipped is not run. A rung that is expected to fail and passes
is a failure, so that the file is kept up to date.
"""

import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.checks.conform.cases import Case
from numpygpt.checks.conform.judging import EXPECTED, FAILED, PASSED, SKIPPED, UNEXPECTED, Outcome, Rung
from numpygpt.checks.conform.rungs import RUNGS
from numpygpt.errors import InputError
from numpygpt.reading import read_file
from numpygpt.sections import value_of

SKIP, FAIL = "skip", "fail"
KIND = "file of expectations"
MOST_BYTES = 2**20


class Expectation(NamedTuple):
    """One entry of the file: what is expected of which cases and rungs, and why."""

    kind: str
    case: str
    rung: str
    reason: str

    def holds_for(self, case: str, rung: str) -> bool:
        """Whether it is about this rung of this case."""
        return fnmatchcase(case, self.case) and fnmatchcase(rung, self.rung)


def read_expectations(path: Path) -> list[Expectation]:
    """The entries of the file. InputError for a file that is missing, no TOML, or has anything else in it."""
    try:
        found = tomllib.loads(read_file(path, KIND, MOST_BYTES).decode())
    except ValueError as error:
        raise InputError(f"the {KIND} {path} cannot be used: {error}") from error
    try:
        return [_expectation(kind, entry) for kind, entries in found.items() for entry in _entries(kind, entries)]
    except InputError as error:
        raise InputError(f"the {KIND} {path} cannot be used: {error}") from error


def _entries(kind: str, entries: Any) -> list[Any]:
    if kind not in (SKIP, FAIL) or not isinstance(entries, list):
        raise InputError(f"it has {kind!r:.80}; expected [[{SKIP}]] and [[{FAIL}]]")
    return entries


def _expectation(kind: str, entry: Any) -> Expectation:
    if not isinstance(entry, Mapping) or set(entry) - {"case", "rung", "reason"}:
        raise InputError(f"[[{kind}]] has {entry!r:.80}; expected case, rung and reason")
    values = {"case": "*", "rung": "*", **entry}
    expectation = Expectation(kind, *(value_of(values, name, str) for name in ("case", "rung", "reason")))
    if not any(fnmatchcase(rung, expectation.rung) for rung in RUNGS):
        raise InputError(f"[[{kind}]] is about the rung {expectation.rung!r:.80}; expected one of: {', '.join(RUNGS)}")
    return expectation


def skipped(case: Case, expectations: list[Expectation]) -> Outcome | None:
    """The outcome of a case that is not run, because each of its rungs is skipped; None for any other."""
    reasons = {rung: _reason(SKIP, case.name, rung, expectations) for rung in RUNGS}
    if None in reasons.values():
        return None
    return Outcome(case, {rung: Rung(SKIPPED, says=str(reason)) for rung, reason in reasons.items()})


def as_expected(outcome: Outcome, expectations: list[Expectation]) -> Outcome:
    """The outcome with what was expected of it."""
    rungs = {name: _as_expected(outcome.case.name, name, rung, expectations) for name, rung in outcome.rungs.items()}
    return outcome._replace(rungs=rungs)


def _as_expected(case: str, name: str, rung: Rung, expectations: list[Expectation]) -> Rung:
    why_skipped = _reason(SKIP, case, name, expectations)
    if why_skipped is not None:
        return rung._replace(state=SKIPPED, says=why_skipped)
    why_failing = _reason(FAIL, case, name, expectations)
    if why_failing is None:
        return rung
    if rung.state == FAILED:
        return rung._replace(state=EXPECTED, says=f"{why_failing} ({rung.says})")
    if rung.state == PASSED:
        return rung._replace(state=UNEXPECTED, says=f"it passes, but was expected to fail: {why_failing}")
    return rung


def _reason(kind: str, case: str, rung: str, expectations: list[Expectation]) -> str | None:
    """The reason of the first entry of this kind that is about the rung; None if there is none."""
    return next((e.reason for e in expectations if e.kind == kind and e.holds_for(case, rung)), None)
