"""numpygpt gradcheck: every gradient against complex step."""

import argparse

from numpygpt.checks import gradcheck
from numpygpt.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--seed", type=int, default=0, help="of the random point and cotangents")


def run(parsed: argparse.Namespace) -> int:
    """Check every operation and a small whole model against complex step; exit status 1 when a gradient is wrong."""
    if parsed.seed < 0:
        raise InputError(f"--seed is {parsed.seed}; expected 0 or more")
    print(f"{'':32}{'gradient':<40}{'elements':>9}{'error':>10}   verdict (right: error <= {gradcheck.THRESHOLD:g})")
    counts = {True: 0, False: 0, None: 0}
    words: dict[bool | None, str] = {True: "right", False: "WRONG", None: "zero, as it should be"}
    for verdicts in gradcheck.check_all(parsed.seed):
        for verdict in verdicts:
            counts[verdict.passed] += 1
            print(
                f"{verdict.case:<32}{verdict.gradient:<40}{verdict.elements:>9}{verdict.error:>10.1e}   "
                f"{words[verdict.passed]}"
            )
    print(f"{counts[True]} right, {counts[None]} zero, {counts[False]} wrong")
    return 1 if counts[False] else 0
