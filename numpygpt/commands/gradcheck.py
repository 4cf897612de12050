"""numpygpt gradcheck: every gradient against complex step."""

import argparse

import numpy as np

from numpygpt.checks import gradcheck
from numpygpt.commands.tables import print_table
from numpygpt.errors import InputError

VERDICTS = {True: "right", False: "WRONG", None: "zero, as it should be"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--seed", type=int, default=0, help="of the random point and cotangents")


def run(parsed: argparse.Namespace) -> int:
    """Check every operation and a small whole model against complex step; exit status 1 if a gradient is wrong."""
    if parsed.seed < 0:
        raise InputError(f"--seed is {parsed.seed}; expected 0 or more")
    verdicts = [verdict for case in gradcheck.check_all(parsed.seed) for verdict in case]
    print_table(
        "llrrl",
        [
            (verdict.case, verdict.gradient, str(verdict.elements), f"{verdict.error:.1e}", VERDICTS[verdict.passed])
            for verdict in verdicts
        ],
        head=("", "gradient", "elements", "error", f"verdict (right: error at most {gradcheck.THRESHOLD:g})"),
        wrong=[index for index, verdict in enumerate(verdicts) if verdict.passed is False],
    )
    right, zero, wrong = (sum(verdict.passed is passed for verdict in verdicts) for passed in (True, None, False))
    print(f"{right} right, {zero} zero, {wrong} wrong")
    cases = gradcheck.cases(np.random.default_rng(parsed.seed))
    left_out = [case.name for case in cases if not gradcheck.can_be_computed(case)]
    if left_out:
        print(f"not checked, because SciPy is not installed (pip install scipy): {'; '.join(left_out)}")
    return 1 if wrong else 0
