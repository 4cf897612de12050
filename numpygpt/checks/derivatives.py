"""Derivatives without a backward: by complex step, and by central differences.

Complex step. The derivative of an analytic function f along a direction v is Im f(x + i h v) / h with an error of order
h² (Squire & Trapp 1998, "Using complex variables to estimate derivatives of real functions", SIAM Review 40). Nothing
is subtracted, so h = 1e-30 loses no digit, and the result is exact to a few roundings: about 1e-14. A wrong constant in
the seventh digit shows as plainly as a missing term.

Central differences, D(h) = (f(x + h v) - f(x - h v)) / 2h, need no complex numbers. Their error has two parts: one of
truncation, a series in h², and one of rounding, N / h, where N is the noise of f. Richardson's extrapolation removes
one term of the series after the other:

    T[k][0] = D(h_k),   h_k = h_0 / 4^k
    T[k][j] = T[k][j-1] + (T[k][j-1] - T[k-1][j-1]) / (16^j - 1)

Nobody knows beforehand at which steps f looks smooth: values with an offset of 1e5 that differ by 1 need steps far
below 1e5. So the steps run from an eighth of the values down to about 1e-13 of them. At steps that are too large, f may
look smooth as well, with another slope: softmax that is saturated, or a ReLU whose kink the steps leap over. So an
entry counts only as far as it agrees with the entries of its column at all smaller steps. Its error is estimated by the
sum of

    the largest difference from its neighbors T[k][j-1], T[k-1][j-1], T[k-1][j] and T[k+1][j] (after Ridders 1982,
    "Accurate computation of F'(x) and F'(x) F''(x)", Advances in Engineering Software 4)
    the noise, N / h_k
    the largest difference from T[m][j], m > k, that SAFETY times the noise N / h_m does not explain

The entry with the smallest estimate is taken, for each direction alone, by the norm over the cotangents.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from numpygpt.shapes import Array, Bool, Inexact

STEP = 1e-30
#: The largest relative error of a right gradient, in Euclidean norms, if complex step gives the reference.
THRESHOLD = 1e-11

#: How large a gradient that should be zero may be because of rounding, relative to the scale of the whole computation.
ROUNDING = 1e-13
#: The factor by which an estimated error may be too small.
SAFETY = 10

#: The factor between the steps h_k of central differences, and the steps in units of the size of x: powers of 2.
RATIO = 4.0
STEPS = 0.125 / RATIO ** np.arange(21)
#: The columns of Richardson's table.
COLUMNS = 7
#: From how many of the smallest steps the noise of a function is taken, and how often it is measured beside x.
SMALLEST = 5
PROBES = 3
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
    kinks    whether the function has a kink along a direction, where the derivatives are taken
    """

    values: Inexact[Array, "directions cotangents"]
    errors: Inexact[Array, "directions cotangents"]
    kinks: Bool[Array, "directions"]


def by_complex_step(
    outputs: Outputs, x: Array, directions: Iterable[Array], cotangents: Inexact[Array, "cotangents n"]
) -> Derivatives:
    """The derivatives at x along each direction, by complex step."""
    directions = list(directions)
    values = np.array([cotangents @ outputs(x + 1j * STEP * v).imag / STEP for v in directions])
    kinks = np.zeros(len(directions), bool)
    if has_kink(outputs, x, _random_direction(x), cotangents):
        kinks = np.array([has_kink(outputs, x, v, cotangents) for v in directions])
    return Derivatives(values, np.zeros_like(values), kinks)


def by_differences(
    outputs: Outputs, x: Array, directions: Iterable[Array], cotangents: Inexact[Array, "cotangents n"]
) -> Derivatives:
    """The derivatives at x along each direction, by extrapolated central differences, with estimates of their errors.

    A function that is not finite beside x has derivatives of infinite error.
    """
    with np.errstate(all="ignore"):
        middle = outputs(x)
        steps = STEPS[: _steps_that_show(outputs, x)]
        noise = _noise_beside(outputs, x, middle, cotangents)
        lines = [_along(outputs, x, v, cotangents, steps, middle) for v in directions]
        hidden = ROUNDOFF * np.hypot.reduce(cotangents * np.maximum(np.abs(middle), 1), axis=1)
        return _extrapolated(Lines(*map(np.array, zip(*lines, strict=True))), noise, hidden)


class Lines(NamedTuple):
    """What differences say along each direction, at each step, for each cotangent.

    steps         the steps, a row for each direction
    differences   D(h)
    gaps          the slope above x less the slope below it
    slopes        the size of both slopes, with which a gap is compared
    """

    steps: Inexact[Array, "directions steps"]
    differences: Inexact[Array, "directions steps cotangents"]
    gaps: Inexact[Array, "directions steps cotangents"]
    slopes: Inexact[Array, "directions steps cotangents"]


def _along(
    outputs: Outputs, x: Array, v: Array, cotangents: Array, steps: Array, middle: Array
) -> tuple[Array, Array, Array, Array]:
    """The fields of Lines for one direction."""
    steps = steps * size_along(x, v)
    above = np.array([outputs(x + h * v) for h in steps])
    below = np.array([outputs(x - h * v) for h in steps])
    return steps, *_slopes(above, middle, below, steps, cotangents)


def _slopes(above: Array, middle: Array, below: Array, steps: Array, cotangents: Array) -> tuple[Array, Array, Array]:
    """The mean slope, the difference of the slopes on both sides, and their size, at each step for each cotangent."""
    h = steps[:, np.newaxis]
    up, down = above - middle, middle - below
    mean, gap = (above - below) @ cotangents.T / (2 * h), np.abs((up - down) @ cotangents.T) / h
    return mean, gap, (np.abs(up) + np.abs(down)) @ np.abs(cotangents).T / h


def _steps_that_show(outputs: Outputs, x: Array) -> int:
    """How many of STEPS are so large that the outputs show them; at least enough for a table.

    A function that rounds inside, to float32 or to a grid, does not change at a step that is far smaller. Its outputs
    show a step if at least half of those that change at all change there. Larger steps need not show: a function may be
    flat far from x.
    """
    v = _random_direction(x)
    changed = np.array([outputs(x + h * v) != outputs(x - h * v) for h in STEPS * size_along(x, v)])
    shown = changed.sum(axis=1) >= changed.any(axis=0).sum() / 2
    return max(SMALLEST, 1 + int(np.flatnonzero(shown)[-1]))


def _noise_beside(outputs: Outputs, x: Array, middle: Array, cotangents: Array) -> Array:
    """For each cotangent, how far roundings of the inputs and of the outputs move <cotangent, outputs>."""
    rng = np.random.default_rng(0)
    beside = [outputs(moved_by_a_rounding(x, rng)) for _ in range(PROBES)]
    moved = np.abs((np.array(beside) - middle) @ cotangents.T).max(axis=0)
    return np.asarray(moved + ROUNDOFF * np.hypot.reduce(cotangents * middle, axis=1))


def moved_by_a_rounding(array: Array, rng: np.random.Generator) -> Array:
    """The array with each value moved to the next number, up or down by chance."""
    return np.asarray(array * (1 + 2 * ROUNDOFF * rng.choice([-1.0, 1.0], array.shape)))


def _extrapolated(
    lines: Lines, noise: Inexact[Array, "cotangents"], hidden: Inexact[Array, "cotangents"]
) -> Derivatives:
    """The entries of Richardson's tables with the smallest estimates of their errors.

    hidden   the noise of a function that is flat at small steps and not at large ones: its small output may be what is
             left of numbers of size 1, such as log(1 + 1e-4), which do not move by less than their last place
    """
    column, steps = lines.differences, lines.steps[:, :, np.newaxis]
    is_flat = (column == 0).any(axis=1) & (column != 0).any(axis=1)
    noise = np.maximum(noise, np.where(is_flat, hidden, 0))
    jumps = steps[:, :-1] * np.abs(column[:, 1:] - column[:, :-1])
    seen = np.median(jumps[:, -SMALLEST:], axis=1).max(axis=-1, keepdims=True)
    rounded_steps = 2 * ROUNDOFF * steps[:, :1] / STEPS[0] * np.abs(column)
    noises = (np.maximum(seen, noise)[:, np.newaxis] + rounded_steps) / steps
    n_directions, n_steps, n_cotangents = column.shape
    values, errors = column[:, -1].copy(), np.full((n_directions, n_cotangents), np.inf)
    kinks = np.zeros(n_directions, bool)
    for j in range(1, min(COLUMNS, n_steps - 2)):
        following = column[:, 1:] + (column[:, 1:] - column[:, :-1]) / (RATIO ** (2 * j) - 1)
        estimates = _estimates(column, following, noises[:, j:])
        norms = np.sqrt((estimates * estimates).sum(axis=-1))
        best = np.argmin(np.where(np.isnan(norms), np.inf, norms), axis=1)
        for i in np.flatnonzero(norms[np.arange(n_directions), best] < np.hypot.reduce(errors, axis=-1)):
            entry = best[i] + 1  # the first has no estimate
            values[i], errors[i] = following[i, entry], estimates[i, best[i]]
            used = slice(entry, entry + j + 2)  # the steps of the entry, and the next
            kinks[i] = _stays(lines.gaps[i, used], lines.slopes[i, used], SAFETY * noises[i, used])
        column = following
    return Derivatives(values, errors, kinks)


def _estimates(column: Array, following: Array, noises: Array) -> Array:
    """The estimated errors of a column of the tables, but for its first and its last entry, which lack a neighbor.

    column      the column before
    following   the column
    noises      the noise of each entry of the column
    """
    entries = following[:, 1:-1]
    neighbors = np.array([column[:, 2:-1], column[:, 1:-2], following[:, :-2], following[:, 2:]])
    estimates = np.abs(neighbors - entries).max(axis=0) + noises[:, 1:-1]
    for k in range(entries.shape[1]):
        unexplained = np.abs(entries[:, k, np.newaxis] - following[:, k + 2 :]) - SAFETY * noises[:, k + 2 :]
        estimates[:, k] += np.maximum(unexplained, 0.0).max(axis=1)
    return np.asarray(estimates)


# Sizes and directions


def size_of(x: Array) -> float:
    """The size of x's values as a whole: their root mean square, or 1 if all are zero."""
    return float(np.sqrt((x * x).mean())) or 1.0


def size_along(x: Array, v: Array) -> float:
    """The size by which the steps along v are chosen: the median of the sizes of the values that v moves.

    It is at least the median of all values. Zeros are left out of both; it is 1 if all values are zero. It is the
    nearest power of 2, so that x + h has no rounding error where h is no smaller than the last digit of x.
    """
    return float(2.0 ** np.round(np.log2(max(_median(x), _median(x[v != 0])) or 1.0)))


def _median(values: Array) -> float:
    sizes = np.abs(values[values != 0])
    return float(np.median(sizes)) if sizes.size else 0.0


def _random_direction(x: Array) -> Array:
    return np.asarray(np.random.default_rng(1).standard_normal(x.shape))


# Kinks

#: The steps at which the slopes on both sides of x are compared, in units of the size of x, if complex step is taken.
SIDES = np.array([1e-7, 1e-8, 1e-9, 1e-10])
#: The share of a slope that the difference of both sides has at most if the function is smooth.
SMOOTH = 1e-5


def has_kink(outputs: Outputs, x: Array, v: Array, cotangents: Inexact[Array, "cotangents n"]) -> bool:
    """Whether the derivatives on the two sides of x along v differ for any cotangent, however small the steps are."""
    with np.errstate(all="ignore"):
        _, gaps, slopes = _along(outputs, x, v, cotangents, SIDES, outputs(x))[1:]
        return _stays(gaps, slopes, np.zeros_like(gaps))


def _stays(
    gaps: Inexact[Array, "steps cotangents"],
    slopes: Inexact[Array, "steps cotangents"],
    noises: Inexact[Array, "steps cotangents"],
) -> bool:
    """Whether the difference of the slopes on both sides is the same at each step, for any cotangent.

    A difference below the noises is none. Of a smooth function it is h f'', so that a quarter of the step makes it a
    quarter; of rounding errors, a quarter of the step makes it about four times as large. At a kink it stays as it is.
    """
    first, *later = gaps
    stays = np.all([(gap > first / 2) & (gap < first * 2) for gap in later], axis=0)
    return bool((stays & (gaps[-1] > np.maximum(SMOOTH * slopes[-1], noises[-1]))).any())
