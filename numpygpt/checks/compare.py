"""Comparing the named tensors of a run with a reference's.

A tensor agrees if its error is small enough in the whole tensor and in every row (along the last axis), in Euclidean
norms:

    ‖ours - reference‖ <= allowed

The norm of the whole tensor alone would hide a wrong row behind large ones. Judged one by one, the small elements of a
row would fail because of what rounding does to them. What is allowed comes from the caller, as norms of the same kind.
So a reference of zero is judged by the size of its own rounding errors (`torchgpt.checks.parity` measures them) and not
by an absolute number, and a large tensor gets no more room than a small one.

A tensor whose error cannot be measured fails: a missing or unexpected name, another shape or dtype, a NaN on either
side, an infinity that the reference does not have, an array that is still the previous run's.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from numpygpt.shapes import Array

#: The largest ‖ours - reference‖ / ‖reference‖ of a tensor in float64 at ordinary scales. Rounding gives about 1e-15,
#: and the smallest wrong term or constant that anybody has met gives 1e-9.
FLOAT64_NORMWISE = 1e-12


class Norms(NamedTuple):
    """How large a tensor or an error is: the Euclidean norms of the whole and of each row."""

    tensor: float
    rows: Array


def norms(array: Any) -> Norms:
    """The norms of a real array; a scalar is one row. No step overflows or underflows unless the result does."""
    magnitudes = np.abs(np.asarray(array, np.float64))
    rows = np.hypot.reduce(magnitudes.reshape(-1, magnitudes.shape[-1] if magnitudes.ndim else 1), axis=1)
    return Norms(float(np.hypot.reduce(rows)), rows)


def difference(ours: Any, reference: Any) -> Norms:
    """The norms of ours - reference; two equal infinities differ by 0."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    with np.errstate(invalid="ignore"):
        return norms(np.where(ours == reference, 0, ours - reference))


def largest(several: Iterable[Norms]) -> Norms:
    """The largest norm of the whole tensor, and the largest norm of each row."""
    tensors, rows = zip(*several, strict=True)
    return Norms(max(tensors), np.maximum.reduce(rows))


def scaled(norms: Norms, factor: float) -> Norms:
    """The norms of a tensor `factor` times as large."""
    return Norms(norms.tensor * factor, norms.rows * factor)


def normwise(reference: Array, threshold: float = FLOAT64_NORMWISE) -> Norms:
    """What allows the whole tensor an error of threshold ‖reference‖, in whatever rows it lies."""
    size = finite_norms(reference)
    return Norms(threshold * size.tensor, np.full_like(size.rows, np.inf))


def finite_norms(array: Array) -> Norms:
    """The norms of the finite elements: masked attention scores are -inf."""
    return norms(np.where(np.isfinite(array), array, 0))


class Comparison(NamedTuple):
    """What was found for one tensor.

    fault     why the error cannot be measured; "" if it can
    error     ‖ours - reference‖
    size      ‖reference‖
    allowed   the largest error of the whole
    used      error / allowed, of the whole or of a row, whichever is largest
    """

    name: str
    fault: str
    error: float
    size: float
    allowed: float
    used: float

    @property
    def passed(self) -> bool:
        """Whether ours agrees with the reference."""
        return not self.fault and bool(self.used <= 1)

    @property
    def zero(self) -> bool:
        """Whether the reference is not larger than the allowed error, so that a tensor of zeros would pass as well."""
        return bool(self.size <= self.allowed)


def compare(
    ours: Mapping[str, Array],
    reference: Mapping[str, Array],
    allowed: Mapping[str, Norms],
    *,
    dtype: Any,
    previous: Mapping[str, Array] | None = None,
) -> list[Comparison]:
    """A comparison for each name of the reference, in its order, then for each name that only ours has.

    ours        the arrays to be judged, which should all have this dtype
    reference   real arrays of any dtype
    allowed     for each name of the reference, the largest error
    previous    the arrays of an earlier run; one of ours that uses the memory of its namesake here was not made anew
    """
    comparisons = []
    for name, expected in reference.items():
        fault = _fault(ours.get(name), expected, np.dtype(dtype), (previous or {}).get(name))
        size, room = finite_norms(expected), allowed[name]
        error = Norms(np.inf, np.full_like(size.rows, np.inf)) if fault else difference(ours[name], expected)
        comparisons.append(Comparison(name, fault, error.tensor, size.tensor, room.tensor, used(error, room)))
    unexpected = [name for name in ours if name not in reference]
    return comparisons + [Comparison(name, "unexpected", np.inf, 0.0, 0.0, np.inf) for name in unexpected]


def _fault(ours: Array | None, expected: Array, dtype: np.dtype, previous: Array | None) -> str:
    if ours is None:
        return "missing"
    if ours.shape != expected.shape:
        return f"shape {ours.shape}, expected {expected.shape}"
    if ours.dtype != dtype:
        return f"{ours.dtype}, expected {dtype}"
    if previous is not None and np.shares_memory(ours, previous):
        return "stale: the previous run's array"
    if np.isnan(ours).any() or np.isnan(expected).any():
        return "NaN"
    infinite = np.isinf(ours) | np.isinf(expected)
    if (ours[infinite] != expected[infinite]).any():
        return "infinite"
    return ""


def used(error: Norms, allowed: Norms) -> float:
    """The largest error / allowed, of the whole or of a row. If both are 0, nothing is used."""
    errors, room = np.append(error.rows, error.tensor), np.append(allowed.rows, allowed.tensor)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return float(np.where(errors == 0, 0, errors / room).max())
