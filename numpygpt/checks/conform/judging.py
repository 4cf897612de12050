"""Asking an implementation for a case, and judging its answer rung by rung.

A rung is

    passed       every tensor of it that the implementation shows is within its budget, and there is at least one
    failed       a tensor is wrong, or missing although the implementation does not say that it shows none
    not shown    the implementation says that it does not compute it
    empty        the case has no such tensors: without new tokens there is no generation

If there was no answer at all (a crash, a time limit, garbage), every rung of the case is failed.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from numpygpt.checks.compare import Comparison
from numpygpt.checks.conform.adapter import Computed, Fault, Port, TooSlow
from numpygpt.checks.conform.cases import Case, reference
from numpygpt.checks.conform.rungs import RUNGS, rung_of
from numpygpt.checks.dialects import Candidate, partial_of
from numpygpt.checks.diff import MISSING, Finding, diff
from numpygpt.checks.formulas import BLOCK
from numpygpt.checks.trace_file import TraceFile

PASSED, FAILED, NOT_SHOWN, EMPTY = "passed", "failed", "not shown", "empty"
#: What `numpygpt.checks.conform.expectations` makes of them.
SKIPPED, EXPECTED, UNEXPECTED = "skipped", "failed as expected", "passed unexpectedly"
#: A rung of these states keeps an implementation from conforming.
BAD = (FAILED, UNEXPECTED)
REFERENCE, PORT = "reference.safetensors", "port"


class Rung(NamedTuple):
    """What was found for a rung.

    state        one of the above
    shown, of    how many of its tensors were judged, and how many there are
    says         why it failed, or is not judged; ""
    first        the first tensor of it that is wrong; ""
    """

    state: str
    shown: int = 0
    of: int = 0
    says: str = ""
    first: str = ""


class Outcome(NamedTuple):
    """What was found for a case.

    rungs     {rung: what was found}, all of RUNGS
    fault     why there was no answer; "" if there was one
    first     the first wrong tensor of all, in the order of the computation; "" if none is
    seconds   that the implementation took
    too_slow  whether it exceeded the time limit
    printed   what it had printed to standard error until then, at its end
    """

    case: Case
    rungs: dict[str, Rung]
    fault: str = ""
    first: str = ""
    seconds: float = 0.0
    too_slow: bool = False
    printed: bytes = b""

    @property
    def failed(self) -> bool:
        """Whether a rung keeps the implementation from conforming."""
        return any(rung.state in BAD for rung in self.rungs.values())

    @property
    def computed(self) -> bool:
        """Whether any rung was judged: the implementation can compute the case, and it was not skipped."""
        return any(rung.state not in (NOT_SHOWN, SKIPPED, EMPTY) for rung in self.rungs.values())

    @property
    def cause(self) -> str:
        """What makes two failures the same: the first wrong tensor of whatever block, or that there is no answer."""
        return "no answer" if self.fault else BLOCK.sub("{i}", self.first)

    @property
    def says(self) -> str:
        """Why it failed, in a line: that of the first wrong tensor."""
        if self.fault or not self.first:
            return self.fault
        return next(rung.says for rung in self.rungs.values() if rung.first == self.first)


class Asked(NamedTuple):
    """A case that was asked for.

    truth      the trace of the reference
    computed   the answer; None if there was none
    """

    outcome: Outcome
    truth: TraceFile
    computed: Computed | None


def judge(port: Port, case: Case, by: str | None) -> Outcome:
    """Ask for the case and judge the answer. `by` says who finds the budgets, as `budgets_of` takes it."""
    with TemporaryDirectory(prefix="numpygpt-conform-") as folder:
        return ask(port, case, by, Path(folder)).outcome


def ask(port: Port, case: Case, by: str | None, folder: Path) -> Asked:
    """The same with what was found on the way. `folder` is empty; the port's own folder in it is named PORT."""
    truth = reference(case, folder / REFERENCE, by)
    (folder / PORT).mkdir()
    begin = time.monotonic()
    try:
        computed = port.compute(case, truth, folder / PORT)
    except Fault as fault:
        seconds = time.monotonic() - begin
        outcome = _no_answer(case, str(fault))._replace(seconds=seconds)
        if isinstance(fault, TooSlow):
            outcome = outcome._replace(too_slow=True, printed=fault.printed)
        return Asked(outcome, truth, None)
    seconds = time.monotonic() - begin
    return Asked(judged(case, truth, computed)._replace(seconds=seconds), truth, computed)


def _no_answer(case: Case, fault: str) -> Outcome:
    return Outcome(case, {name: Rung(FAILED, says=fault) for name in RUNGS}, fault)


def judged(case: Case, truth: TraceFile, computed: Computed) -> Outcome:
    """The outcome of an answer."""
    if computed.unable:
        return Outcome(case, {name: Rung(NOT_SHOWN, says=computed.unable) for name in RUNGS})
    unknown = [name for name in computed.tensors if name not in truth.order]
    if unknown:
        some = f"{unknown[0]!r:.80}"
        return _no_answer(case, f"{len(unknown)} tensors have names that the trace does not have, such as {some}")
    found = {finding.name: finding for finding in diff(truth, candidate_of(computed)).findings}
    for name in truth.order:
        if name not in found and computed.must_show(name):
            found[name] = Finding(Comparison(name, "missing", np.inf, 0.0, 0.0, np.inf), None, MISSING)
    in_order = [found[name] for name in truth.order if name in found]
    changed = [finding for finding in in_order if rung_of(finding.name) is None and finding.verdict != "agrees"]
    if changed:
        says = changed[0].comparison.fault
        return _no_answer(case, f"{changed[0].name} was given, and has come back changed: {says}")
    rungs = {name: _rung(name, truth.order, in_order, computed) for name in RUNGS}
    return Outcome(case, rungs, first=next((f.name for f in in_order if f.verdict != "agrees"), ""))


def candidate_of(computed: Computed) -> Candidate:
    """The answer as `numpygpt.checks.diff` takes it."""
    read = {name: partial_of(array) for name, array in computed.tensors.items()}
    return Candidate(Path("candidate"), computed.format, read, {}, {}, [], partial=True)


def _rung(rung: str, order: Sequence[str], findings: Sequence[Finding], computed: Computed) -> Rung:
    names = [name for name in order if rung_of(name) == rung]
    own = [finding for finding in findings if rung_of(finding.name) == rung]
    of = partial(Rung, shown=len(own), of=len(names))
    if not names:
        return of(EMPTY, says="the case has no such tensors")
    if not own:
        reason = "does not compute this rung" if rung not in computed.rungs else "shows no tensor of this rung"
        return of(NOT_SHOWN, says=f"the implementation says that it {reason}")
    wrong = [finding for finding in own if finding.verdict != "agrees"]
    if not wrong:
        return of(PASSED)
    return of(FAILED, says=_says(wrong), first=wrong[0].name)


def _says(wrong: Sequence[Finding]) -> str:
    """The first wrong tensor, how far off it is, and how many there are."""
    first = wrong[0]
    verdict = "" if first.verdict == MISSING else f", {first.verdict}"
    others = len(wrong) - 1
    more = f"; {others} more {'is' if others == 1 else 'are'} wrong" if others else ""
    return f"{first.name}: {first.off}{verdict}{more}"
