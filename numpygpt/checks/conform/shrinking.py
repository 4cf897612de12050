"""The smallest model for which an implementation still fails in the same way.

One size after the other is made as small as it can be: each smaller value is tried, from the smallest on, and the first
that still fails is kept. This is repeated until no size becomes smaller. hypothesis' own shrinking needs hundreds of
runs, each of which may start a process; this needs about twenty.
"""

from collections.abc import Callable
from dataclasses import replace

from numpygpt.checks.conform.cases import Case, described
from numpygpt.checks.conform.judging import Outcome
from numpygpt.checks.trace import checked
from numpygpt.errors import InputError

#: The sizes that are made smaller, in this order, and the smallest of each.
SMALLEST = {"L": 1, "H": 1, "K": 1, "B": 1, "T": 1, "steps": 1, "new_tokens": 0}


def sizes_of(case: Case) -> dict[str, int]:
    """The sizes that can be made smaller, by the letters of SMALLEST."""
    config, settings = case.config, case.settings
    return {
        "L": config.n_layers,
        "H": config.n_heads,
        "K": config.head_dim,
        "B": settings.batch_size,
        "T": settings.tokens,
        "steps": settings.steps,
        "new_tokens": settings.new_tokens,
    }


def with_sizes(case: Case, sizes: dict[str, int]) -> Case:
    """The case with other sizes. InputError if there is no such model."""
    config = replace(
        case.config, n_layers=sizes["L"], n_heads=sizes["H"], emb_dim=sizes["H"] * sizes["K"]
    )
    settings = case.settings._replace(
        batch_size=sizes["B"], tokens=sizes["T"], steps=sizes["steps"], new_tokens=sizes["new_tokens"]
    )
    checked(config, settings)
    return Case(f"smallest-{described(config, settings)}", config, settings)


def shrunk(outcome: Outcome, judge: Callable[[Case], Outcome]) -> Outcome:
    """The outcome of the smallest case with the same cause; the same outcome if no smaller case has it."""
    before = None
    while before != outcome.case:
        before = outcome.case
        for letter in SMALLEST:
            outcome = _with_smallest(letter, outcome, judge)
    return outcome


def _with_smallest(letter: str, outcome: Outcome, judge: Callable[[Case], Outcome]) -> Outcome:
    """The outcome with the smallest value of one size that has the same cause."""
    sizes = sizes_of(outcome.case)
    for size in range(SMALLEST[letter], sizes[letter]):
        try:
            case = with_sizes(outcome.case, sizes | {letter: size})
        except InputError:  # sinusoidal positions need an even number of features
            continue
        found = judge(case)
        if found.failed and found.cause == outcome.cause:
            return found
    return outcome
