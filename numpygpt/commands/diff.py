"""numpygpt diff: where another implementation first leaves a trace, and why."""

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from numpygpt.checks.budgets import FORMATS
from numpygpt.checks.diagnose import Diagnosis, diagnose
from numpygpt.checks.dialects import Candidate, open_candidate
from numpygpt.checks.diff import MISSING, WRONG, Diff, Finding, diff
from numpygpt.checks.trace_file import TraceFile
from numpygpt.commands.diff_page import page
from numpygpt.commands.tables import print_table
from numpygpt.errors import listed
from numpygpt.files import check_writable, write_text
from numpygpt.parallel import use_own_threads
from numpygpt.shapes import Array

#: How many of the wrong tensors the table shows.
MOST_SHOWN = 20
#: How many names a line lists.
MOST_LISTED = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="a trace, as `numpygpt trace` writes it")
    of_candidate = "safetensors of another implementation, or llm.c's debug state"
    parser.add_argument("candidate", type=Path, metavar="CANDIDATE", help=of_candidate)
    parser.add_argument("--names", type=Path, metavar="MAP", help='a JSON file {"their name": "our name"}')
    computed = "the format that the candidate was computed in (default: the shortest dtype in its file)"
    parser.add_argument("--dtype", choices=FORMATS, help=computed)
    parser.add_argument("--partial", action="store_true", help="the candidate need not have every tensor")
    parser.add_argument("--no-diagnosis", action="store_true", help="do not look for the cause")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with maps and histograms, too")


def run(parsed: argparse.Namespace) -> int:
    """Compare a candidate with a trace: where it first leaves its budget, what is merely downstream, and why.

    Exit status 1 if it leaves the budget anywhere.
    """
    if parsed.html:
        check_writable(parsed.html)
    use_own_threads()
    reference = TraceFile(parsed.reference)
    candidate = open_candidate(
        parsed.candidate, reference, names=parsed.names, dtype=parsed.dtype, partial=parsed.partial
    )
    with ThreadPoolExecutor(1) as thread:  # the digest needs another core, and no lock of Python
        checked = thread.submit(reference.refuse_damage)
        found = diff(reference, candidate)
    checked.result()
    diagnoses = [] if parsed.no_diagnosis else _diagnose(reference, candidate, found)
    print("\n".join(_about_names(candidate, found)))
    _print_wrong(found)
    lines = [line for diagnosis in diagnoses for line in diagnosis.lines]
    print(summary(found))
    print("\n".join(lines), end="\n" if lines else "")
    if parsed.html:
        facts = _facts(parsed, reference, candidate, found)
        write_text(parsed.html, page(found, summary(found), facts, lines, _first(reference, candidate, found)))
        print(f"wrote {parsed.html}")
    return 0 if found.first is None else 1


def _diagnose(reference: TraceFile, candidate: Candidate, found: Diff) -> Sequence[Diagnosis]:
    from tqdm import tqdm

    progress = partial(tqdm, desc="known causes", unit="cause", delay=2, leave=False, dynamic_ncols=True)
    return diagnose(reference, candidate, found, progress)


def _about_names(candidate: Candidate, found: Diff) -> list[str]:
    """What is worth telling about the names of the candidate's tensors."""
    lines = [f"{candidate.path} is judged as {candidate.format}"]
    if candidate.dtypes:
        lines.append(
            f"warning: mixed dtypes, for it also has {', '.join(candidate.dtypes)}: the shortest loosens the budgets "
            f"of all; name the format by --dtype"
        )
    proposed = sorted(candidate.proposed.items(), key=lambda item: -item[1])
    for ours, distance in proposed[:MOST_LISTED]:
        theirs = candidate.theirs[ours]
        lines.append(f"{theirs} is taken for {ours} by its content, from which it differs by {distance:.1e}")
    if len(proposed) > MOST_LISTED:
        lines.append(f"and {len(proposed) - MOST_LISTED} more by their content, from which they differ by less")
    if candidate.by_others:
        pairs = [f"{candidate.theirs[ours]} for {ours}" for ours in candidate.by_others]
        lines.append(f"taken by their names, which differ from ours as those do: {listed(pairs, MOST_LISTED)}")
    if candidate.unknown:
        lines.append(f"not matched with any tensor of the trace: {listed(candidate.unknown, MOST_LISTED)}")
    missing = [finding.name for finding in found.wrong if finding.verdict == MISSING]
    if missing:
        shown = listed(missing, MOST_LISTED)
        lines.append(f"missing: {shown}; say --partial if the candidate need not have every tensor")
    if found.left_out:
        lines.append(f"not compared, because the candidate lacks them: {listed(found.left_out, MOST_LISTED)}")
    return lines


def _print_wrong(found: Diff) -> None:
    """The first wrong tensors. Those with a fault of their own come before those that are downstream."""
    own = [finding for finding in found.wrong if finding.verdict == WRONG]
    shown = (own or found.wrong)[:MOST_SHOWN]
    if not shown:
        return
    print_table(
        "lrrrl",
        [_cells(finding) for finding in shown],
        head=("tensor", "error", "budget", "used", "verdict"),
        wrong=range(len(shown)),
    )
    left = len(found.wrong) - len(shown)
    if left:
        print(f"and {left} more that are wrong")


def _cells(finding: Finding) -> tuple[str, ...]:
    comparison = finding.comparison
    used = f"{comparison.used:.2g}" if math.isfinite(comparison.used) else ""
    numbers = (f"{comparison.error:.1e}", f"{comparison.allowed:.1e}", used) if used else ("", "", "")
    said = comparison.fault or (finding.verdict if used else finding.off)
    return finding.name, *numbers, said


def summary(found: Diff) -> str:
    """How many tensors agree, or which one is the first that does not."""
    first, count = found.first, len(found.findings)
    if first is None:
        worst = max(found.findings, key=lambda finding: finding.comparison.used)
        return f"all {count} tensors agree; the most of a budget is used by {worst.name}, {worst.comparison.used:.0%}"
    verdicts = [finding.verdict for finding in found.wrong]
    downstream = sum(verdict != WRONG for verdict in verdicts)
    are = "is" if len(verdicts) == 1 else "are"
    return (
        f"first divergence: {first.name}, {first.off}; {len(verdicts)} of {count} tensors {are} wrong, {downstream} of "
        f"them downstream or missing"
    )


def _facts(parsed: argparse.Namespace, reference: TraceFile, candidate: Candidate, found: Diff) -> dict[str, str]:
    header = reference.header
    return {
        "reference": str(parsed.reference),
        "candidate": "; ".join(_about_names(candidate, found)),
        "configuration": ", ".join(f"{name} {value}" for name, value in header.config.to_dict().items()),
        "settings": ", ".join(f"{name} {value}" for name, value in header.settings._asdict().items()),
        "budgets": header.budgets,
    }


def _first(reference: TraceFile, candidate: Candidate, found: Diff) -> tuple[Array, Array] | None:
    """The reference's and the candidate's array of the first wrong tensor, if it has one."""
    if found.first is None or found.first.name not in candidate.tensors:
        return None
    return reference.read(found.first.name), candidate.tensors[found.first.name]()
