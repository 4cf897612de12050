"""numpygpt gradcheck: every gradient against complex step, or those of an operation that somebody wrote."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from numpygpt.checks import Report, experiments, gradcheck, own_gradients
from numpygpt.checks.derivatives import THRESHOLD
from numpygpt.checks.gradient_report import WRONG
from numpygpt.checks.lookup import Operation, find
from numpygpt.commands.tables import print_table
from numpygpt.errors import InputError
from numpygpt.evaluation.scores import progress_bar
from numpygpt.files import check_writable
from numpygpt.pictures.step_sizes import plot_step_sizes

#: Where --sweep draws its picture.
SWEEP_PNG = "gradcheck-sweep.png"
#: How much of what a method says is shown.
LONGEST = 80
VERDICTS = {True: "right", False: "WRONG", None: "zero, as it should be"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("operation", nargs="?", metavar="MODULE:NAME", help="an operation of yours; without it, those of numpygpt")
    add("--shape", nargs="+", metavar="NAME=N,N", help="draw normal inputs of these shapes, instead of by example(rng)")
    add("--seed", type=int, default=0, help="of the random point and cotangents")
    add("--seeds", type=int, default=1, help="with an operation: how many points, from --seed on")
    experiments = parser.add_argument_group("experiments").add_mutually_exclusive_group()
    add = experiments.add_argument
    add("--bug", metavar="NAME", help="plant this bug in numpygpt and show which methods see it")
    add("--sweep", action="store_true", help="the error of numerical derivatives at each step, and a picture")
    add("--power", action="store_true", help="the smallest relative error in one gradient that each method sees")
    parser.add_argument("--png", type=Path, metavar="FILE", help=f"the picture of --sweep (default: {SWEEP_PNG})")


def run(parsed: argparse.Namespace) -> int:
    """Check gradients against complex step, or differences; exit status 1 if one is wrong or could not be judged.

    Without an operation, this checks every operation of numpygpt and a small whole model. The experiments exit with
    status 0 whatever they show.
    """
    if parsed.seed < 0:
        raise InputError(f"--seed is {parsed.seed}; expected 0 or more")
    if parsed.seeds < 1:
        raise InputError(f"--seeds is {parsed.seeds}; expected 1 or more")
    experiment = _experiment(parsed)
    _refuse_what_has_no_meaning(parsed, experiment is not None)
    if experiment is not None:
        return experiment(parsed)
    return _check_operation(parsed) if parsed.operation else _check_own(parsed)


def _experiment(parsed: argparse.Namespace) -> Callable[[argparse.Namespace], int] | None:
    if parsed.bug is not None:
        return _show_bug
    return _show_sweep if parsed.sweep else _show_power if parsed.power else None


def _refuse_what_has_no_meaning(parsed: argparse.Namespace, is_experiment: bool) -> None:
    is_no_check_of_one = is_experiment or not parsed.operation
    refused = {
        "--shape": parsed.shape is not None and is_no_check_of_one,
        "--seeds": parsed.seeds > 1 and is_no_check_of_one,
        "MODULE:NAME": parsed.operation and parsed.bug is not None,
        "--png": parsed.png is not None and not parsed.sweep,
    }
    goes_with = {
        "--shape": "MODULE:NAME, without an experiment",
        "--seeds": "MODULE:NAME, without an experiment",
        "MODULE:NAME": "a check, --sweep or --power",
        "--png": "--sweep",
    }
    for name, wrong in refused.items():
        if wrong:
            raise InputError(f"{name} has no meaning here; leave it out (it goes with {goes_with[name]})")


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


# Experiments


def _show_bug(parsed: argparse.Namespace) -> int:
    bug = experiments.bug_of(parsed.bug)
    print(f"{bug.name}: {bug.what} ({bug.seen_at})")
    place, sights = experiments.what_sees(bug, parsed.seed)
    print(f"planted in {place}")
    rows = [(sight.method, "sees it" if sight.says else "does not", _shortened(sight.says)) for sight in sights]
    print_table("lll", rows, head=("method", "", "what it says"))
    if not any(sight.says for sight in sights):
        print("no check of gradients sees it here: what is computed is wrong, and its gradient is right for that")
    print(f"properties of the tests that see it: {', '.join(bug.properties) or 'none'}")
    _print_absent()
    return 0


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _show_sweep(parsed: argparse.Namespace) -> int:
    operation = find(parsed.operation or "numpygpt.ops.gelu")
    path = parsed.png or Path(SWEEP_PNG)
    check_writable(path)
    errors = experiments.sweep(operation, parsed.seed)
    rows = [
        (f"{step:.0e}", *("-" if np.isnan(error) else f"{error:.1e}" for error in row))
        for step, row in zip(experiments.SWEPT, np.array([*errors.values()]).T, strict=True)
    ]
    print(f"{operation.name}: relative error of the derivative")
    print_table("r" * (1 + len(errors)), rows, head=("step", *errors))
    plot_step_sizes(experiments.SWEPT, errors, path)
    print(f"wrote {path}")
    return 0


def _show_power(parsed: argparse.Namespace) -> int:
    named = experiments.operations(parsed.operation)
    by_name, _ = experiments.methods()
    rows = []
    with progress_bar(len(named) * len(by_name), "method") as advance:
        for operation in named:
            cells = [operation.name]
            for method in by_name.values():
                cells.append(_decade(experiments.smallest_seen(operation, method, parsed.seed)))
                advance(1)
            rows.append(cells)
    print(f"smallest relative error in one gradient that is seen in {experiments.DRAWS} draws of {experiments.DRAWS}")
    print_table("l" + "r" * len(by_name), rows, head=("", *by_name))
    _print_absent()
    return 0


def _decade(size: float) -> str:
    return "none" if np.isinf(size) else f"{size:.0e}"


def _print_absent() -> None:
    for line in experiments.methods()[1]:
        print(line)
