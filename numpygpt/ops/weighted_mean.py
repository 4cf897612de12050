"""The weighted mean of values of tokens: over all tokens, over sequences, or their sum.

    x         (B, T)   values, such as the loss of each token
    weights   (B, T)   w, constants of 0 or more; 0 leaves a token out, whatever its value is
    y         ()       the mean

Forward, by `over`:

    (1)  "tokens":     y = sum(w * x) / sum(w)                       each token counts alike
         "sequences":  y = mean over sequences of sum_t(w * x) / sum_t(w)
                                                                     each sequence counts alike, however long it is
         "sum":        y = sum(w * x)

A sequence whose weights are all 0 does not count. If there is none that counts, y is 0. A value of a token that does
not count may be anything, also -inf or NaN: w * x is 0 there.

Derivation, as w is constant:

    d_x = c w d_y        c = 1 / sum(w);   1 / (count sum_t(w)), of the token's sequence;   1

Trap: the mean over micro-batches of "tokens" means is no "tokens" mean of the whole batch. Whoever cuts a batch gives
each part `normalizer`, the sum(w) or the number of sequences of the whole: then the parts' results add up to the
whole's.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.shapes import Array, Inexact

WAYS = ("tokens", "sequences", "sum")


class Saved(NamedTuple):
    coefficients: Array  # (B, T): c w


def forward(
    x: Inexact[Array, "B T"],
    weights: Array,
    *,
    over: str = "tokens",
    normalizer: float | None = None,
) -> tuple[Any, Saved]:
    """The mean, a NumPy scalar of x's dtype.

    weights      (B, T), booleans or numbers
    normalizer   what `total` gives for the whole batch of which this is a part; None: this is the whole

    Raises InputError for another word than "tokens", "sequences" or "sum".
    """
    w = np.asarray(weights, x.dtype)
    whole = total(weights, over=over)
    divisor = float((whole if normalizer is None else normalizer) or 1)
    if over == "sequences":
        lengths = w.sum(axis=1, keepdims=True)
        w = w / np.where(lengths == 0, 1, lengths)
    coefficients = w / divisor
    counted = coefficients != 0
    y = (coefficients[counted] * x[counted]).sum()  # (1)
    return y, Saved(coefficients)


def total(weights: Array, *, over: str = "tokens") -> float:
    """What a mean over these weights divides by: their sum, the number of sequences with any, or 1.

    Raises InputError as `forward`.
    """
    w = np.asarray(weights).real
    if over not in WAYS:
        raise InputError(f"the mean is over {over!r}; expected one of {', '.join(map(repr, WAYS))}")
    if over == "sum":
        return 1.0
    return float(w.sum(dtype=np.float64) if over == "tokens" else np.count_nonzero(w.any(axis=1)))


class Gradients(NamedTuple):
    x: Inexact[Array, "B T"]


def backward(d_y: Any, saved: Saved) -> Gradients:
    return Gradients(d_y * saved.coefficients)  # undoes (1)
