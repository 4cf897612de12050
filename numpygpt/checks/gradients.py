"""The gradient check for any forward and backward: `from numpygpt.checks import gradcheck`.

    report = gradcheck(forward, backward, inputs, seed=0)
    report.verdict                       # "pass", "fail" or "no verdict"
    print(report)                        # a row for each argument, and what is wrong in words

`numpygpt.checks.pairs` says which forms of forward, backward and inputs are accepted.

What is compared. For random cotangents c of the outputs, L = <c, outputs> has a gradient for each argument. The
backward gives one. The other is taken from the forward alone: by complex step if the forward carries complex numbers,
which is tried for each argument (`numpygpt.checks.analytic`), and else by central differences
(`numpygpt.checks.derivatives`). A tensor of up to EVERY_ELEMENT elements is compared element by element. A larger one
is compared at SAMPLED elements and along DIRECTIONS random directions v, each of which sees an error δ anywhere in the
tensor as <δ, v>.

What is allowed. The error is ‖backward's - reference‖ / ‖reference‖ in Euclidean norms of the whole tensor, for the
worst cotangent. It may be as large as the largest of three:

    THRESHOLD, 1e-11
    SAFETY times the estimated error of the reference; complex step has none
    SAFETY times the rounding error of the backward, which is measured: by how much the gradient moves if it is
    computed for another multiple of the cotangent, and for inputs that are moved by one unit roundoff

If this allows more than LOOSEST, the argument gets no verdict. It gets none either if its gradient is zero except for
rounding, because any multiple of the right gradient would then pass, if the function has a kink at the inputs, and if
complex step and differences disagree (`numpygpt.checks.analytic`).

`own_gradients.judge` is another judge, of numpygpt's own gradients. It has complex step for every element, so that it
needs no estimates of errors: its threshold is fixed, and tests that compare with PyTorch use it as well.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from numpygpt.checks.analytic import LOOSEST, Method, method_for, outputs_of
from numpygpt.checks.backwards import Backwards
from numpygpt.checks.derivatives import (
    ROUNDING,
    ROUNDOFF,
    SAFETY,
    THRESHOLD,
    Derivatives,
    by_complex_step,
    by_differences,
    size_of,
)
from numpygpt.checks.directions import Directions
from numpygpt.checks.gradient_report import NONE, RIGHT, WRONG, Report, Row, concluded
from numpygpt.checks.pairs import Pair, Ran, are_numbers
from numpygpt.checks.words import ALIKE, in_words, in_words_of_samples
from numpygpt.errors import InputError
from numpygpt.shapes import Array

#: How many random cotangents there are.
COTANGENTS = 3


def gradcheck(
    forward: Callable[..., Any], backward: Callable[..., Any], inputs: Any, *, seed: int = 0
) -> Report:
    """Compare every gradient that backward gives with one that is taken from forward alone.

    forward, backward, inputs   in any form that `numpygpt.checks.pairs` lists
    seed                        of the cotangents, directions and sampled elements

    Raises InputError if nothing can be checked: inputs that do not fit, an exception of forward or backward, an output
    that is not finite.
    """
    pair = Pair(forward, backward, inputs)
    rng = np.random.default_rng([seed, 1])  # not that of the seed alone, of which the caller may draw the inputs
    ran = pair.run()
    _refuse_unusable(ran)
    unstable = _differs_from(ran, pair)
    if unstable:
        return Report("no verdict", unstable)
    cotangents = rng.standard_normal((COTANGENTS, ran.outputs.size))
    backwards = Backwards(pair, ran, cotangents)
    methods = {name: method_for(pair, name, cotangents, backwards.of[name], rng) for name in pair.leaves}
    references = {name: _reference(pair, name, cotangents, rng, method) for name, method in methods.items()}
    zeros = _zeros(pair, ran, cotangents, references)
    rows = tuple(_judged(name, references, backwards, zeros[name]) for name in references)
    notes = [f"d_{name}: central differences, because {method.why}" for name, method in methods.items() if method.why]
    report = concluded(rows, tuple(backwards.faults), tuple(notes))
    hint = pair.second_output(ran)
    return replace(report, notes=(*notes, hint)) if hint and report.verdict == "fail" else report


def _refuse_unusable(ran: Ran) -> None:
    if np.iscomplexobj(ran.outputs):
        raise InputError("forward gives complex numbers for real inputs; expected real outputs: return the two parts")
    wrong = ran.outputs.size - np.count_nonzero(np.isfinite(ran.outputs))
    if wrong:
        raise InputError(
            f"the output of forward is not finite: {wrong} of {ran.outputs.size} values are NaN or infinite; give "
            f"inputs at which the function is defined"
        )
    if not ran.outputs.size:
        raise InputError("the output of forward is empty; expected at least one value")


def _differs_from(ran: Ran, pair: Pair) -> str:
    """Why the forward is no function of its inputs; empty if a second call gives the same, bit for bit."""
    again = pair.run().outputs
    if again.shape == ran.outputs.shape and np.array_equal(again, ran.outputs):
        return ""
    return (
        "forward gives another output when it is called again with the same inputs, so it has no gradient to compare: "
        "pass what it draws at random as an argument, and keep no state"
    )


# What forward gives


class Reference(NamedTuple):
    """The gradient of a leaf as forward gives it: its derivatives along each direction, for each cotangent."""

    directions: Directions
    derivatives: Derivatives
    method: Method


def _reference(pair: Pair, name: str, cotangents: Array, rng: np.random.Generator, method: Method) -> Reference:
    x = pair.leaves[name]
    directions = Directions(x.shape, rng)
    by = by_differences if method.why else by_complex_step
    return Reference(directions, by(outputs_of(pair, name), x, directions, cotangents), method)


# The verdict


class Measured(NamedTuple):
    """Norms of some products of a gradient with directions, one for each cotangent.

    difference   of the backward's from the reference's
    size         of the reference's
    limit        the largest difference of a right gradient
    """

    difference: Array
    size: Array
    limit: Array

    @property
    def worst(self) -> int:
        """The cotangent with the largest difference for its limit."""
        return int(np.argmax(np.nan_to_num(_ratio(self.difference, self.limit), nan=np.inf)))

    @property
    def wrong(self) -> bool:
        """Whether any difference is above its limit; NaN is."""
        return not bool((self.difference <= self.limit).all())

    def is_zero(self, zero: float) -> bool:
        """Whether both are zero except for rounding, and do not agree any better than that."""
        if self.size.all() and (self.difference <= THRESHOLD * self.size).all():
            return False
        return bool((np.maximum(self.size, self.difference) <= zero).all())

    @property
    def told(self) -> int:
        """The cotangent of which a wrong gradient is told in words: the one with the largest gradient, if it shows."""
        largest = int(np.argmax(self.size))
        return largest if self.difference[largest] > self.limit[largest] else self.worst

    def is_loose(self, zero: float) -> bool:
        """Whether only a difference that is large for its gradient would be seen.

        A gradient that is zero except for rounding is compared with the scale of the whole computation.
        """
        scale = np.where(self.size > zero, self.size, zero / ROUNDING)
        return not bool((self.limit <= LOOSEST * scale).all())


def _ratio(a: Array, b: Array) -> Array:
    """a / b, where 0 / 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((a == 0) & (b == 0), 0.0, a / b)


def _judged(name: str, references: Mapping[str, Reference], backwards: Backwards, zero: float) -> Row:
    """The row of a leaf.

    zero   how large the norm of a gradient that should be zero may be because of rounding
    """
    reference, gradients = references[name], backwards.of[name]
    directions, kinks = reference.directions, reference.derivatives.kinks

    def row(error: Any, allowed: Any, verdict: str, said: str = "") -> Row:
        method = "differences" if reference.method.why else "complex step"
        return Row(name, directions.size, directions.compared(), method, float(error), float(allowed), verdict, said)

    fault = _fault_of_form(gradients, directions.shape)
    if fault:
        return row(np.inf, THRESHOLD, WRONG, f"{fault}{_swapped(name, references, gradients)}")
    with np.errstate(all="ignore"):
        ours = np.array([directions.of(gradient) for gradient in gradients]).T
        parts = [_measured(ours[part], reference, part, backwards.noise[name]) for part in directions.parts(kinks)]
    loose = [part for part in parts if part.is_loose(zero)]
    wrong = [part for part in parts if part.wrong and not part.is_zero(zero) and not part.is_loose(zero)]
    part = next(iter([*wrong, *loose, parts[-1]]))
    error, allowed = (_ratio(norm, part.size)[part.worst] for norm in (part.difference, part.limit))
    if not np.isfinite(ours).all():
        return row(np.inf, allowed, WRONG, _wrong_in_words(ours[:, part.worst], reference, part.worst))
    if wrong and not reference.method.disputed:
        words = _wrong_in_words(ours[:, part.told], reference, part.told)
        return row(error, allowed, WRONG, f"{words}{_swapped(name, references, gradients)}")
    if reference.method.disputed:
        return row(error, allowed, NONE, DISPUTED)
    if kinks.any():
        return row(error, allowed, NONE, _kinks_in_words(reference))
    if part.is_zero(zero):
        return row(part.difference.max(), zero, NONE, ZERO)
    if loose:
        return row(error, allowed, NONE, f"cannot be judged: only an error above {allowed:.1e} could be seen here")
    return row(error, allowed, RIGHT)


DISPUTED = "cannot be judged: the two methods disagree, and nobody knows which of them is right"
ZERO = (
    "is zero for every random cotangent, as it should be, so that any multiple of the right gradient would pass: give "
    "other inputs, or look at more than a sum (softmax and LayerNorm have constant sums)"
)


def _fault_of_form(gradients: list[Any], shape: tuple[int, ...]) -> str:
    """What is wrong with the form of a gradient, in words; empty if nothing is."""
    for gradient in gradients:
        if gradient is None:
            return "is missing: backward returns none"
        if not are_numbers(gradient) or np.iscomplexobj(gradient):
            return f"has the dtype {gradient.dtype}; expected real numbers"
        if gradient.shape != shape:
            return f"has the shape {gradient.shape}; expected {shape}"
    return ""


def _measured(ours: Array, reference: Reference, part: Array, noise: float) -> Measured:
    """The norms of the products with some of the directions, given as booleans."""
    values, errors = reference.derivatives.values[part], reference.derivatives.errors[part]
    size = _norms(values)
    limit = np.maximum(THRESHOLD * size, SAFETY * np.maximum(_norms(errors), noise))
    return Measured(_norms(ours - values), size, limit)


def _norms(products: Array) -> Array:
    return np.sqrt((products * products).sum(axis=0))


def _swapped(name: str, references: Mapping[str, Reference], gradients: list[Any]) -> str:
    """Words that say of which other leaves a wrong gradient is the right one."""
    others = [other for other, reference in references.items() if other != name and _is_right(gradients, reference)]
    return f"; it is the right {' and '.join(f'd_{other}' for other in others)}" if others else ""


def _is_right(gradients: list[Any], reference: Reference) -> bool:
    """Whether the gradients, one for each cotangent, are those of this leaf."""
    directions, right = reference.directions, reference.derivatives.values
    if any(not are_numbers(gradient) or gradient.shape != directions.shape for gradient in gradients):
        return False
    ours = np.array([directions.of(gradient) for gradient in gradients]).T
    return bool(right.any() and np.linalg.norm(ours - right) <= ALIKE * np.linalg.norm(right))


def _wrong_in_words(ours: Array, reference: Reference, cotangent: int) -> str:
    directions, right = reference.directions, reference.derivatives.values[:, cotangent]
    if directions.all_elements:
        return in_words(ours.reshape(directions.shape), right.reshape(directions.shape))
    return in_words_of_samples(ours, right, directions.elements, directions.shape)


def _kinks_in_words(reference: Reference) -> str:
    directions = reference.directions
    kinked = directions.elements[reference.derivatives.kinks[: len(directions.elements)]]
    places = [f"[{', '.join(map(str, np.unravel_index(int(index), directions.shape)))}]" for index in kinked[:3]]
    where = f" at {', '.join(places)}{', ...' * (len(kinked) > 3)}" if places and directions.shape else ""
    return f"has no right value{where}: the function has a kink there, its slopes on both sides differ; move the input"


def _zeros(pair: Pair, ran: Ran, cotangents: Array, references: dict[str, Reference]) -> dict[str, float]:
    """For each leaf, how large the norm of a gradient that should be zero may be because of rounding.

    The scale is the largest gradient of all, or what the gradient is if a change of the leaf by its own size changes
    the outputs by theirs.
    """
    largest = max(float(_norms(reference.derivatives.values).max()) for reference in references.values())
    sizes = np.abs(ran.outputs) + ROUNDOFF  # of an output that is 0, because it has underflowed
    outputs = float(_norms((cotangents * sizes).T).max())
    return {
        name: ROUNDING * max(largest, outputs / (size_of(leaf) * np.sqrt(leaf.size) or 1.0))
        for name, leaf in pair.leaves.items()
    }
