"""numpygpt conform: whether another implementation of GPT computes what ours does, rung by rung."""

import argparse
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import mkdtemp

from numpygpt.checks.budgets import FORMATS
from numpygpt.checks.conform.adapter import Port, find_adapter
from numpygpt.checks.conform.cases import Case, drawn, standard
from numpygpt.checks.conform.climbing import Climb, climb
from numpygpt.checks.conform.evidence import gather
from numpygpt.checks.conform.expectations import read_expectations
from numpygpt.checks.conform.judging import BAD, EMPTY, EXPECTED, FAILED, NOT_SHOWN, PASSED, SKIPPED, UNEXPECTED
from numpygpt.checks.conform.junit import junit
from numpygpt.checks.conform.process import Program
from numpygpt.checks.conform.rungs import RUNGS
from numpygpt.commands.conform_page import page
from numpygpt.commands.tables import print_table
from numpygpt.errors import InputError
from numpygpt.files import check_writable, write_text
from numpygpt.training.run import make_writable

MARKS = {
    PASSED: "ok",
    FAILED: "FAILED",
    NOT_SHOWN: "-",
    EMPTY: "",
    SKIPPED: "skipped",
    EXPECTED: "expected",
    UNEXPECTED: "UNEXPECTED",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    port = parser.add_mutually_exclusive_group(required=True)
    port.add_argument("--adapter", metavar="MODULE:NAME", help="a class in Python with a method run")
    port.add_argument("--command", metavar="WORDS", help="a program, which gets a folder as its last argument")
    add("--draws", type=int, default=8, help="how many models hypothesis draws, besides the standard ones")
    add("--seed", type=int, default=0, help="of the drawn models")
    add("--cases", metavar="PATTERN", default="*", help="only the cases whose names are like this, such as '1-*'")
    add("--timeout", type=float, default=60.0, help="the most seconds that --command may take for a case")
    computed = "the format that it computes in (default: what the adapter says, or the shortest dtype in an answer)"
    add("--dtype", choices=FORMATS, help=computed)
    add("--expect", type=Path, metavar="FILE", help="a TOML file of known skips and failures")
    by = "who finds the budgets: numpy, or torch's rounding model, which takes longer"
    add("--budgets", metavar="BY", default="numpy", help=by)
    add("--no-shrink", action="store_true", help="do not look for the smallest model that fails")
    kept = "where the files of what fails are kept (default: a new temporary folder)"
    add("--keep", type=Path, metavar="FOLDER", help=kept)
    add("--junit", type=Path, metavar="FILE", help="write JUnit XML, too")
    add("--html", type=Path, metavar="FILE", help="write a page with a badge, too")


def run(parsed: argparse.Namespace) -> int:
    """Ask another implementation for a ladder of small models, and judge what it computes by the budgets of traces.

    Exit status 1 if it does not conform.
    """
    for path in (parsed.junit, parsed.html):
        if path is not None:
            check_writable(path)
    if parsed.keep is not None:
        make_writable(parsed.keep)
    port = _port(parsed)
    expectations = read_expectations(parsed.expect) if parsed.expect else []
    cases = _cases(parsed)
    found = climb(
        port, _with_progress(cases), by=parsed.budgets, expectations=expectations, shrink=not parsed.no_shrink
    )
    not_kept = ""
    if found.failures:
        try:
            folder = parsed.keep or Path(mkdtemp(prefix="numpygpt-conform-"))
            found = found._replace(evidence=gather(port, found.failures, found.smallest, parsed.budgets, folder))
        except (InputError, OSError) as error:  # what was found must not be lost with it
            not_kept = f"the files of what failed were not kept, and nothing was diagnosed: {error}"
    _print(found)
    if not_kept:
        print(not_kept)
    print(summary(found))
    if parsed.junit:
        write_text(parsed.junit, junit(found))
        print(f"wrote {parsed.junit}")
    if parsed.html:
        write_text(parsed.html, page(found, summary(found), _facts(parsed)))
        print(f"wrote {parsed.html}")
    return 0 if found.conforms else 1


def _port(parsed: argparse.Namespace) -> Port:
    if not parsed.timeout > 0:
        raise InputError(f"--timeout is {parsed.timeout:g}; expected more than 0 seconds")
    if parsed.adapter is None:
        return Program(parsed.command, parsed.timeout, parsed.dtype)
    adapter = find_adapter(parsed.adapter)
    adapter.format = parsed.dtype or adapter.format
    return adapter


def _cases(parsed: argparse.Namespace) -> list[Case]:
    if not 0 <= parsed.draws <= 10_000:
        raise InputError(f"--draws is {parsed.draws}; expected 0 to 10000")
    if parsed.seed < 0:
        raise InputError(f"--seed is {parsed.seed}; expected 0 or more")
    cases = [*standard(), *drawn(parsed.draws, parsed.seed)]
    chosen = [case for case in cases if fnmatchcase(case.name, parsed.cases)]
    if not chosen:
        raise InputError(f"no case is like {parsed.cases!r:.80}; there are {', '.join(case.name for case in cases)}")
    return chosen


def _with_progress(cases: Sequence[Case]) -> Iterator[Case]:
    from tqdm import tqdm

    yield from tqdm(cases, desc="cases", unit="case", delay=2, leave=False, dynamic_ncols=True)


def _print(found: Climb) -> None:
    """A line for each case, then what failed, and what was not judged."""
    rows = [
        (outcome.case.name, *(MARKS[outcome.rungs[rung].state] for rung in RUNGS)) for outcome in found.outcomes
    ]
    wrong = [index for index, outcome in enumerate(found.outcomes) if outcome.failed]
    print_table("l" * (1 + len(RUNGS)), rows, head=("case", *RUNGS), wrong=wrong)
    for line in failures(found):
        print(line)
    for line in not_judged(found):
        print(line)


def failures(found: Climb) -> list[str]:
    """A line for each failure (of a case without an answer, or of each of its rungs), and the evidence below it."""
    lines = []
    for outcome in found.outcomes:
        bad = {name: rung for name, rung in outcome.rungs.items() if rung.state in BAD}
        if outcome.fault and bad:
            lines.append(f"{outcome.case.name}: {outcome.fault}")
        else:
            lines += [f"{outcome.case.name}, {name}: {rung.says}" for name, rung in bad.items()]
        smallest = found.smallest.get(outcome.case.name)
        if smallest is not None:
            name = smallest.case.name.removeprefix("smallest-")
            lines.append(f"{outcome.case.name}: the smallest model that fails so is {name}: {smallest.says}")
        if outcome.case.name in found.evidence:
            lines += [f"  {line}" for line in found.evidence[outcome.case.name].lines]
    return lines


def not_judged(found: Climb) -> list[str]:
    """A line for each reason why something was not judged, with the number of cases and their rungs."""
    reasons: dict[str, list[str]] = {}
    for outcome in found.outcomes:
        for rung in outcome.rungs.values():
            if rung.state in (NOT_SHOWN, SKIPPED, EXPECTED):
                cases = reasons.setdefault(f"{rung.state}: {rung.says}", [])
                if outcome.case.name not in cases:
                    cases.append(outcome.case.name)
    return [f"{reason} [{counted(len(cases))}, such as {cases[0]}]" for reason, cases in reasons.items()]


def summary(found: Climb) -> str:
    """How it ended, in a line."""
    failed = sum(outcome.failed for outcome in found.outcomes)
    cases = len(found.outcomes)
    if failed:
        first = next(outcome for outcome in found.outcomes if outcome.failed)
        where = f", the first wrong tensor is {first.first} of {first.case.name}" if first.first else ""
        return f"does not conform: {failed} of {counted(cases)} fail{'s' if failed == 1 else ''}{where}"
    if not found.conforms:
        return f"does not conform: nothing was shown in {counted(cases)}"
    counts = [(rung, found.count_of(rung)) for rung in RUNGS]
    told = [f"{rung} {count.shown}/{count.of} tensors" for rung, count in counts if count.judged]
    missing = [rung for rung, count in counts if not count.judged]
    left = f"; not shown: {', '.join(missing)}" if missing else ""
    return f"conforms in {computed(found)}: {', '.join(told)}{left}"


def computed(found: Climb) -> str:
    """The number of cases that were judged: "1 of 2 cases, 1 not computed"."""
    cases = len(found.outcomes)
    if found.computed == cases:
        return counted(cases)
    return f"{found.computed} of {counted(cases)}, {cases - found.computed} not computed"


def counted(cases: int) -> str:
    """The number of cases, in words."""
    return f"{cases} case{'' if cases == 1 else 's'}"


def _facts(parsed: argparse.Namespace) -> dict[str, str]:
    return {
        "implementation": parsed.adapter or parsed.command,
        "drawn models": f"{parsed.draws}, seed {parsed.seed}",
        "budgets": f"by {parsed.budgets}",
        "expectations": str(parsed.expect) if parsed.expect else "none",
    }
