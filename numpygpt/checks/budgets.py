"""The budgets of a trace: how far rounding alone may move each tensor in each number format.

A budget is the largest Euclidean norm of a difference, of the whole tensor and of each row along its last axis
(`numpygpt.checks.compare`). Where PyTorch is installed, budgets come from its rounding model, by an entry point of the
group BROUGHT (`torchgpt.checks.trace_budgets`). Without it they are a stated multiple of an error that NumPy can
measure itself: that of the same trace in float32, in proportion to the roundoff of the format.

For tf32, bfloat16 and float16, activations and gradients are taken to be in that format, and AdamW's moments and
parameters in float32, as in mixed-precision training.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

import numpy as np

from numpygpt.checks.compare import Norms, difference, finite_norms, largest, normwise, scaled
from numpygpt.checks.trace import TOKENS, Trace, is_given, record
from numpygpt.errors import InputError
from numpygpt.shapes import Array

#: {format: u, the largest relative error of rounding to it}.
FORMATS: Mapping[str, float] = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tf32": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
}
#: How many times as large as NumPy's own float32 error, per roundoff, the error of another implementation may be. The
#: error of one run is a sample, and may by chance be small in a row.
MULTIPLE = 16.0
#: The smallest normal number of float32. Smaller ones lose digits.
SMALLEST = 2.0**-126

#: {format: {name: budget}} for every computed tensor.
Budgets = dict[str, dict[str, Norms]]

#: The group of entry points, each a function from a trace to its budgets.
BROUGHT = "numpygpt.budgets"


def budgets_of(trace: Trace, by: str | None = None) -> tuple[str, Budgets]:
    """How the budgets were found, in a line, and the budgets.

    by   "numpy", or the name of an entry point, such as "torch"; None: an entry point that can be imported, else NumPy

    Raises InputError for a name that there is not.
    """
    brought = {point.name: point for point in entry_points(group=BROUGHT)}
    if by is not None and by not in (*brought, "numpy"):
        raise InputError(f"budgets by {by!r}; expected one of: {', '.join(('numpy', *brought))}")
    for name, point in brought.items():
        if by not in (None, name):
            continue
        try:
            function: Callable[[Trace], tuple[str, Budgets]] = point.load()
        except ImportError:
            if by == name:
                raise
            continue
        return function(trace)
    return by_numpy(trace)


def by_numpy(trace: Trace) -> tuple[str, Budgets]:
    """MULTIPLE times NumPy's own error in float32, per roundoff; in float64 at least FLOAT64_NORMWISE of the tensor."""
    shorter, longer = (_in_dtype(trace, dtype) for dtype in ("float32", "float64"))
    budgets: Budgets = {format_: {} for format_ in FORMATS}
    for name, truth in longer.items():
        if is_given(name) or name == TOKENS:
            continue
        measured = _evened(difference(shorter[name], truth), truth)
        for format_, roundoff in FORMATS.items():
            allowed = scaled(measured, MULTIPLE * roundoff / FORMATS["float32"])
            if ".exp_avg_sq." in name:
                allowed = added(allowed, _squared(budgets[format_][_gradient_of(name)]))
            budgets[format_][name] = with_reference(allowed, truth, format_)
        if trace.settings.dtype == "float32":
            _add_the_references_own(budgets, name)
    how = f"{MULTIPLE:g} times the error of NumPy's own float32 run against float64, in proportion to roundoff"
    return how, budgets


def _in_dtype(trace: Trace, dtype: str) -> dict[str, Array]:
    if trace.settings.dtype == dtype:
        return trace.tensors
    return record(trace.config, trace.settings._replace(dtype=dtype)).tensors


def _evened(error: Norms, truth: Array) -> Norms:
    """The error, and in each row at least its share of the whole, and u of the row's own size."""
    share = error.tensor / np.sqrt(len(error.rows))
    size = finite_norms(truth)
    return largest(
        [
            error,
            Norms(0.0, np.full_like(error.rows, share)),
            scaled(size, FORMATS["float32"]),
            Norms(SMALLEST, np.full_like(error.rows, SMALLEST)),
        ]
    )


def with_reference(allowed: Norms, truth: Array, format_: str) -> Norms:
    """The budget; in float64 the whole tensor may also differ by `FLOAT64_NORMWISE` of its size."""
    if format_ != "float64":
        return allowed
    return Norms(max(allowed.tensor, normwise(truth).tensor), allowed.rows)


def _gradient_of(second_moment: str) -> str:
    """The name of the gradient whose square the second moment holds."""
    step, _, parameter = second_moment.partition(".exp_avg_sq.")
    return f"d_{parameter}" if step == "step1" else f"{step}.d_{parameter}"


def _squared(error: Norms) -> Norms:
    """A bound of the norms of an error's square: (g + e)² has the error 2 g e, which is proportional, and e²."""
    return Norms(error.tensor**2, error.rows**2)


def _add_the_references_own(budgets: Budgets, name: str) -> None:
    """A reference in float32 has errors of its own, so the difference may have both."""
    own = budgets["float32"][name]
    for of_format in budgets.values():
        of_format[name] = added(of_format[name], own)


def added(some: Norms, more: Norms) -> Norms:
    """What two errors together may be."""
    return Norms(some.tensor + more.tensor, some.rows + more.rows)
