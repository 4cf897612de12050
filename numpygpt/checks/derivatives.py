"""Derivatives without a backward: by complex step, and by central differences.

Complex step. The derivative of an analytic function f along a direction v is Im f(x + i h v) / h with an error of order
h² (Squire & Trapp 1998, "Using complex variables to estimate derivatives of real functions", SIAM Review 40). Nothing
is subtracted, so h = 1e-30 loses no digit, and the result is exact to a few roundings: about 1e-14. A wrong constant in
the seventh digit shows as plainly as a missing term.

Central differences, D(h) = (f(x + h v) - f(x - h v)) / 2h, need no complex numbers. Their error has two parts: one of
truncation, a series in h², and one of rounding, about u |f| / h with u = 1.1e-16. Richardson's extrapolation removes
one term of the series after the other:

    T[k][0] = D(h_k),   h_k = h_0 / 3^k
    T[k][j] = T[k][j-1] + (T[k][j-1] - T[k-1][j-1]) / (9^j - 1)

The largest difference of an entry from its neighbors T[k][j-1], T[k-1][j-1] and T[k+1][j] estimates its error, and the
entry with the smallest estimate is taken (after Ridders 1982, "Accurate computation of F'(x) and F'(x) F''(x)",
Advances in Engineering Software 4). Ridders chooses for each derivative alone, so among many derivatives some estimate
is small by chance. Here one entry (k, j) is chosen for all derivatives of a tensor, by the norm of their estimates.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from numpygpt.shapes import Array, Inexact

STEP = 1e-30
#: The largest relative error of a right gradient, in Euclidean norms, if complex step gives the reference.
THRESHOLD = 1e-11

#: The steps h_k of central differences, in units of the size of x.
STEPS = 0.1 / 3.0 ** np.arange(11)
#: The unit roundoff of float64.
ROUNDOFF = np.finfo(np.float64).eps / 2

#: A function of one array, float64 or complex128, whose result is a flat array.
Outputs = Callable[[Array], Array]


def complex_step(function: Callable[[Array], Any], x: Array) -> Array:
    """The gradient of a real-valued analytic function of a float64 array, element by element.

    function   is called with a complex128 copy of x, once for each element; returns a scalar
    """
    gradient = np.empty(x.shape)
    stepped = x.astype(np.complex128)
    for index in np.ndindex(x.shape):
        stepped[index] += STEP * 1j
        gradient[index] = function(stepped).imag / STEP
        stepped[index] = x[index]
    return gradient


class Derivatives(NamedTuple):
    """Of <cotangent, outputs>, a row for each direction and a column for each cotangent.

    values   the derivatives
    errors   how large their errors may be; 0 for complex step, whose errors are roundings
    """

    values: Inexact[Array, "directions cotangents"]
    errors: Inexact[Array, "directions cotangents"]


def by_complex_step(
    outputs: Outputs, x: Array, directions: Iterable[Array], cotangents: Inexact[Array, "cotangents n"]
) -> Derivatives:
    """The derivatives at x along each direction, by complex step."""
    values = np.array([cotangents @ outputs(x + 1j * STEP * v).imag / STEP for v in directions])
    return Derivatives(values, np.zeros_like(values))


def by_differences(
    outputs: Outputs, x: Array, directions: Iterable[Array], cotangents: Inexact[Array, "cotangents n"]
) -> Derivatives:
    """The derivatives at x along each direction, by extrapolated central differences, with estimates of their errors.

    A function that is not finite beside x has derivatives of infinite error.
    """
    steps = STEPS * size_of(x)
    differences, roundings = [], []
    with np.errstate(all="ignore"):
        for v in directions:
            pairs = [(outputs(x + h * v), outputs(x - h * v)) for h in steps]
            changes = [above - below for above, below in pairs]
            differences.append([cotangents @ change / (2 * h) for change, h in zip(changes, steps, strict=True)])
            # outputs that no step changes may be the difference of numbers of size 1, such as a loss of 0
            outputs_at_x = pairs[-1][0] if any(change.any() for change in changes) else 1.0
            largest = np.hypot.reduce(cotangents * outputs_at_x, axis=1)
            roundings.append(ROUNDOFF * largest / steps[:, np.newaxis])
        return _extrapolated(np.moveaxis(np.array(differences), 1, 0), np.moveaxis(np.array(roundings), 1, 0))


def _extrapolated(
    column: Inexact[Array, "steps directions cotangents"], roundings: Inexact[Array, "steps directions cotangents"]
) -> Derivatives:
    """The entry of Richardson's table with the smallest estimate of its error."""
    best = Derivatives(column[-1], np.full(column.shape[1:], np.inf))
    for j in range(1, len(column) - 1):
        factor = 9.0**j - 1
        following = column[1:] + (column[1:] - column[:-1]) / factor
        neighbors = np.array([column[1:-1], column[:-2], following[1:]])
        estimates = np.abs(neighbors - following[:-1]).max(axis=0) + roundings[j:-1]
        norms = np.sqrt((estimates * estimates).sum(axis=(1, 2)))
        k = int(np.argmin(np.where(np.isnan(norms), np.inf, norms)))
        if norms[k] < np.sqrt((best.errors * best.errors).sum()):
            best = Derivatives(following[k], estimates[k])
        column = following
    return best


def size_of(x: Array) -> float:
    """The size of x's values by which steps are chosen: their root mean square, or 1 if all are zero."""
    return float(np.sqrt((x * x).mean())) or 1.0


# Kinks

#: The steps at which the derivatives on the left and on the right are compared, in units of the size of x.
SIDES = np.array([1e-4, 1e-5, 1e-6])
#: The share of a slope that the difference of both sides has at most if the function is smooth.
SMOOTH = 1e-5


def has_kink(outputs: Outputs, x: Array, v: Array, cotangents: Inexact[Array, "cotangents n"]) -> bool:
    """Whether the derivatives on the two sides of x along v differ for any cotangent.

    Of a smooth function their difference is h f'', so that a tenth of the step makes it a tenth; of rounding errors, a
    tenth of the step makes it about ten times as large. At a kink it stays as it is.
    """
    with np.errstate(all="ignore"):
        middle = outputs(x)
        gaps, slopes = [], []
        for h in SIDES * size_of(x):
            above, below = outputs(x + h * v) - middle, middle - outputs(x - h * v)
            gaps.append(np.abs(cotangents @ (above - below)) / h)
            slopes.append(np.abs(cotangents) @ (np.abs(above) + np.abs(below)) / h)
        first, *later = gaps
        stays = np.all([(gap > first / 2) & (gap < first * 2) for gap in later], axis=0)
        return bool((stays & (gaps[-1] > SMOOTH * slopes[-1])).any())
