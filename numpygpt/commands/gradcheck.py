"""numpygpt gradcheck: every gradient against complex step, or those of an operation that somebody wrote."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from numpygpt.checks import Report, gradcheck, own_gradients
from numpygpt.checks.derivatives import THRESHOLD
from numpygpt.checks.gradients import WRONG
from numpygpt.checks.lookup import Operation, find
from numpygpt.commands.tables import print_table
from numpygpt.errors import InputError

VERDICTS = {True: "right", False: "WRONG", None: "zero, as it should be"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("operation", nargs="?", metavar="MODULE:NAME", help="an operation of yours; without it, those of numpygpt")
    add("--shape", nargs="+", metavar="NAME=N,N", help="draw normal inputs of these shapes, instead of by example(rng)")
    add("--seed", type=int, default=0, help="of the random point and cotangents")
    add("--seeds", type=int, default=1, help="with an operation: how many points, from --seed on")


def run(parsed: argparse.Namespace) -> int:
    """Check gradients against complex step, or differences; exit status 1 if one is wrong or could not be judged.

    Without an operation, this checks every operation of numpygpt and a small whole model.
    """
    if parsed.seed < 0:
        raise InputError(f"--seed is {parsed.seed}; expected 0 or more")
    if parsed.seeds < 1:
        raise InputError(f"--seeds is {parsed.seeds}; expected 1 or more")
    return _check_operation(parsed) if parsed.operation else _check_own(parsed)


# An operation of the user's


def _check_operation(parsed: argparse.Namespace) -> int:
    operation = find(parsed.operation)
    draw = _drawing(parsed.shape, operation)
    verdicts = []
    for seed in range(parsed.seed, parsed.seed + parsed.seeds):
        inputs = draw(np.random.default_rng(seed))
        report = gradcheck(operation.forward, operation.backward, inputs, seed=seed)
        verdicts.append(report.verdict)
        if seed == parsed.seed or report.verdict != "pass":
            _print(report, f"seed {seed}: " if parsed.seeds > 1 else "")
    if parsed.seeds > 1:
        print(f"{verdicts.count('pass')} of {len(verdicts)} points pass")
    return 0 if set(verdicts) == {"pass"} else 1


def _print(report: Report, where: str) -> None:
    if report.rows:
        wrong = [index for index, row in enumerate(report.rows) if row.verdict == WRONG]
        print_table(report.COLUMNS, report.cells(), head=report.HEAD, wrong=wrong)
    for remark in report.remarks():
        print(remark)
    print(f"{where}{report.verdict}: {report.reason}")


def _drawing(shapes: list[str] | None, operation: Operation) -> Callable[[np.random.Generator], Any]:
    """What draws the inputs: normal values of the given shapes, or the operation's example."""
    if shapes is None:
        return operation.inputs
    sizes = dict(map(_shape, shapes))
    return lambda rng: {name: np.asarray(rng.standard_normal(shape)) for name, shape in sizes.items()}


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """The name and the sizes in a text like x=2,5."""
    name, equals, sizes = text.partition("=")
    numbers = sizes.split(",") if sizes else []
    if not (name and equals and all(number.isdecimal() and 0 < int(number) < 10**9 for number in numbers)):
        raise InputError(f"--shape {text}; expected NAME=N,N with sizes of 1 or more, as in x=2,5 (a number: x=)")
    return name, tuple(map(int, numbers))


# numpygpt's own


def _check_own(parsed: argparse.Namespace) -> int:
    if parsed.shape or parsed.seeds > 1:
        raise InputError("--shape and --seeds have no meaning here; leave them out (they go with MODULE:NAME)")
    verdicts = [verdict for case in own_gradients.check_all(parsed.seed) for verdict in case]
    print_table(
        "llrrl",
        [
            (verdict.case, verdict.gradient, str(verdict.elements), f"{verdict.error:.1e}", VERDICTS[verdict.passed])
            for verdict in verdicts
        ],
        head=("", "gradient", "elements", "error", f"verdict (right: error at most {THRESHOLD:g})"),
        wrong=[index for index, verdict in enumerate(verdicts) if verdict.passed is False],
    )
    right, zero, wrong = (sum(verdict.passed is passed for verdict in verdicts) for passed in (True, None, False))
    print(f"{right} right, {zero} zero, {wrong} wrong")
    cases = own_gradients.cases(np.random.default_rng(parsed.seed))
    left_out = [case.name for case in cases if not own_gradients.can_be_computed(case)]
    if left_out:
        print(f"not checked, because SciPy is not installed (pip install scipy): {'; '.join(left_out)}")
    return 1 if wrong else 0
