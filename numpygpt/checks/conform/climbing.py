"""Climbing the ladder: every case is asked for, and what fails is asked for again with smaller models."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from numpygpt.checks.conform.adapter import Port
from numpygpt.checks.conform.cases import Case
from numpygpt.checks.conform.evidence import Evidence
from numpygpt.checks.conform.expectations import Expectation, as_expected, skipped
from numpygpt.checks.conform.judging import BAD, EXPECTED, FAILED, NOT_SHOWN, PASSED, Outcome, Rung, judge
from numpygpt.checks.conform.rungs import RUNGS
from numpygpt.checks.conform.shrinking import shrunk

#: How many failures of different causes are shrunk and diagnosed.
MOST_EXAMINED = 3
NO_SCIPY = "the reference needs SciPy for the exact form of GELU (pip install scipy)"


class Count(NamedTuple):
    """How often a rung passed, was judged, and of how many tensors it showed how many."""

    passed: int
    judged: int
    shown: int
    of: int


class Climb(NamedTuple):
    """What was found.

    outcomes   of every case of the ladder
    smallest   {name of a case that failed: the outcome of the smallest model that fails in the same way}
    evidence   {name of a case that failed: what was found out about it}, if it was gathered
    """

    outcomes: list[Outcome]
    smallest: dict[str, Outcome]
    evidence: Mapping[str, Evidence] = {}

    def count_of(self, rung: str) -> Count:
        """What was found for a rung in all cases."""
        found = [outcome.rungs[rung] for outcome in self.outcomes]
        judged = [one for one in found if one.state in (PASSED, EXPECTED, *BAD)]
        passed = [one for one in found if one.state == PASSED]
        return Count(len(passed), len(judged), sum(one.shown for one in judged), sum(one.of for one in judged))

    @property
    def rungs(self) -> list[str]:
        """The rungs that passed in every case in which they were judged."""
        counts = {rung: self.count_of(rung) for rung in RUNGS}
        return [rung for rung, count in counts.items() if 0 < count.passed == count.judged]

    @property
    def conforms(self) -> bool:
        """Whether nothing failed, and something was shown."""
        failed = any(outcome.failed for outcome in self.outcomes)
        return not failed and any(self.count_of(rung).passed for rung in RUNGS)

    @property
    def computed(self) -> int:
        """The number of cases of which something was judged."""
        return sum(outcome.computed for outcome in self.outcomes)

    @property
    def failures(self) -> list[Outcome]:
        """The first failure of each of the first few causes; only a case that exceeded the time limit, if one did."""
        return first_failures(self.outcomes)


def climb(
    port: Port,
    cases: Iterable[Case],
    *,
    by: str | None = None,
    expectations: Sequence[Expectation] = (),
    shrink: bool = True,
) -> Climb:
    """Ask the port for every case.

    by       who finds the budgets, as `budgets_of` takes it
    shrink   whether the smallest model is looked for that fails in the same way
    """
    known = list(expectations)
    outcomes: list[Outcome] = []
    for case in cases:
        outcomes.append(outcome_of(port, case, by, known, outcomes))
    failures = [failure for failure in first_failures(outcomes) if shrink and not failure.too_slow]
    return Climb(outcomes, {f.case.name: shrunk(f, lambda case: judge(port, case, by)) for f in failures})


def outcome_of(
    port: Port, case: Case, by: str | None, known: list[Expectation], before: Sequence[Outcome]
) -> Outcome:
    """What is found for a case after those `before`. If one of them exceeded the time limit, it is not asked for."""
    not_run = skipped(case, known)
    if not_run is not None:
        return not_run
    if not case.can_be_made:
        return Outcome(case, {rung: Rung(NOT_SHOWN, says=NO_SCIPY) for rung in RUNGS})
    slow = next((outcome.case.name for outcome in before if outcome.too_slow), None)
    if slow is not None:
        reason = f"not run, because {slow} exceeded the time limit"
        return Outcome(case, {rung: Rung(FAILED, says=reason) for rung in RUNGS}, reason)
    return as_expected(judge(port, case, by), known)


def first_failures(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The first failure of each of the first few causes; only a case that exceeded the time limit, if one did."""
    slow = [outcome for outcome in outcomes if outcome.too_slow]
    if slow:
        return slow[:1]
    first_of: dict[str, Outcome] = {}
    for outcome in outcomes:
        if any(rung.state == FAILED for rung in outcome.rungs.values()):
            first_of.setdefault(outcome.cause, outcome)
    return list(first_of.values())[:MOST_EXAMINED]
