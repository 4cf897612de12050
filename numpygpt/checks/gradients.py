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

If this allows more than LOOSEST, an argument that keeps to it gets no verdict. It gets none either
if its gradient is zero except for rounding, because any multiple of the right gradient would then pass, and if the
function has a kink at the inputs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from numpygpt.checks.analytic import SAFETY, outputs_of, why_not_analytic
from numpygpt.checks.derivatives import (
    ROUNDOFF,
    THRESHOLD,
    Derivatives,
    by_complex_step,
    by_differences,
    has_kink,
    size_of,
)
from numpygpt.checks.pairs import Pair, Ran
from numpygpt.checks.words import in_words, in_words_of_samples
from numpygpt.errors import InputError
from numpygpt.shapes import Array

#: How many random cotangents there are, and how many random directions of a large tensor.
COTANGENTS = 3
DIRECTIONS = 8
#: How often the rounding error of the backward is measured.
PROBES = 3
#: The size up to which every element of a tensor is compared, and how many elements are sampled from a larger one.
EVERY_ELEMENT = 200
SAMPLED = 40
#: The loosest allowed error that still counts as a check.
LOOSEST = 1e-3
#: How large a gradient that should be zero may be because of rounding, relative to the scale of the whole computation.
ROUNDING = 1e-13

RIGHT, WRONG, NONE = "right", "WRONG", "no verdict"


class Row(NamedTuple):
    """What was found for the gradient of one argument.

    argument   its name, or the name of a leaf of it
    elements   how many elements it has
    compared   what was compared: "each element", or how many elements and directions
    method     "complex step" or "differences"
    error      ‖backward's - reference‖ / ‖reference‖ for the worst cotangent; infinite if it cannot be measured
    allowed    the largest error of a right gradient: an error above this is seen
    verdict    "right", "WRONG" or "no verdict"
    said       the same in words, where there is something to say
    """

    argument: str
    elements: int
    compared: str
    method: str
    error: float
    allowed: float
    verdict: str
    said: str = ""


@dataclass(frozen=True)
class Report:
    """The result of a gradient check.

    verdict   "fail" if anything is wrong, else "no verdict" if anything could not be checked, else "pass"
    reason    why, in a line
    rows      a row for each gradient
    faults    what is wrong with the functions themselves: an input that they change, a gradient of nothing
    notes     why complex step was not used
    """

    verdict: str
    reason: str
    rows: tuple[Row, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def cells(self) -> list[tuple[str, ...]]:
        """The table, row by row, under HEAD."""
        return [
            (
                f"d_{row.argument}",
                str(row.elements),
                row.compared,
                row.method,
                f"{row.error:.1e}",
                f"{row.allowed:.1e}",
                row.verdict,
            )
            for row in self.rows
        ]

    def remarks(self) -> list[str]:
        """What the table cannot say: a line each."""
        said = [f"d_{row.argument} {row.said}" for row in self.rows if row.said]
        return [*self.faults, *said, *self.notes]

    def __str__(self) -> str:
        table = [self.HEAD, *self.cells()] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["   ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
        return "\n".join([*lines, *self.remarks(), f"{self.verdict}: {self.reason}"])

    HEAD = ("gradient", "elements", "compared", "method", "error", "allowed", "verdict")
    #: For `print_table`: which columns are numbers.
    COLUMNS = "lrllrrl"


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
    rng = np.random.default_rng(seed)
    ran = pair.run()
    _refuse_unusable(ran)
    unstable = _differs_from(ran, pair)
    if unstable:
        return Report("no verdict", unstable)
    cotangents = rng.standard_normal((COTANGENTS, ran.outputs.size))
    backwards = Backwards(pair, ran, cotangents)
    methods = {name: why_not_analytic(pair, name, cotangents, rng) for name in pair.leaves}
    references = {name: _reference(pair, name, cotangents, rng, why) for name, why in methods.items()}
    zeros = _zeros(pair, ran, cotangents, references)
    rows = tuple(_judged(name, reference, backwards, zeros[name]) for name, reference in references.items())
    notes = tuple(f"d_{name}: central differences, because {why}" for name, why in methods.items() if why)
    return _concluded(rows, tuple(backwards.faults), notes)


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


# What backward gives


class Backwards:
    """The gradients of every leaf for each cotangent, and what is wrong with how they are computed.

    of       {leaf: a gradient for each cotangent, or None}, as backward returned them
    noise    {leaf: how large the rounding errors of its gradients are}, in Euclidean norms
    faults   what is wrong with the functions, in words
    """

    def __init__(self, pair: Pair, ran: Ran, cotangents: Array) -> None:
        self.faults: list[str] = []
        self._pair = pair
        every = [self._gradients(cotangent, ran) for cotangent in cotangents]
        again = self._gradients(cotangents[0], ran)
        self._note_if(
            any(not _same(again[name], every[0][name]) for name in pair.leaves),
            "backward gives another gradient when it is called again: it keeps a state, or changes what was saved",
        )
        self.of = {name: [gradients[name] for gradients in every] for name in pair.leaves}
        twice = self._gradients(2 * cotangents[0], ran)
        linear = {name: _is_twice(twice[name], every[0][name]) for name in pair.leaves}
        self._note_if(
            not all(linear.values()), "backward gives for twice the d_output not twice the gradients: it is not linear"
        )
        self.noise = {name: norm if linear[name] else 0.0 for name, norm in self._noise(cotangents).items()}

    def _gradients(self, cotangent: Array, ran: Ran) -> dict[str, Any]:
        returned, kept = self._pair.call_backward(cotangent, ran)
        gradients, faults = self._pair.gradients(returned)
        for fault in faults:
            self._note_if(True, fault)
        self._note_if(not kept, "backward changes its argument d_output")
        changed = self._pair.changed(ran)
        self._note_if(bool(changed), f"forward or backward changes its argument {', '.join(changed)}")
        return gradients

    def _note_if(self, wrong: bool, fault: str) -> None:
        if wrong and fault not in self.faults:
            self.faults.append(fault)

    def _noise(self, cotangents: Array) -> dict[str, float]:
        """For each leaf, how large the rounding errors of its gradients are.

        The backward is linear in d_output. So for s times a cotangent it gives s times the gradient, and what is left
        after a division by s is rounding. The inputs are moved by one unit roundoff besides.
        """
        rng = np.random.default_rng(0)
        noise = dict.fromkeys(self._pair.leaves, 0.0)
        for _ in range(PROBES):
            ran = self._pair.run({name: _rounded(leaf, rng) for name, leaf in self._pair.leaves.items()})
            for i, cotangent in enumerate(cotangents):
                factor = rng.uniform(1, 2)
                returned, _ = self._pair.call_backward(factor * cotangent, ran)
                gradients, _ = self._pair.gradients(returned)
                for name in noise:
                    noise[name] = max(noise[name], _distance(gradients[name], self.of[name][i], factor))
        return noise


def _rounded(array: Array, rng: np.random.Generator) -> Array:
    """The array with each value moved to the next number, up or down by chance."""
    return np.asarray(array * (1 + 2 * ROUNDOFF * rng.choice([-1.0, 1.0], array.shape)))


def _same(a: Any, b: Any) -> bool:
    return (a is None and b is None) or np.array_equal(a, b)


def _is_twice(a: Any, b: Any) -> bool:
    """Whether a is 2 b, except for rounding; what is missing or not finite is judged elsewhere."""
    return a is None or b is None or not np.isfinite(b).all() or _distance(a, 2 * b, 1.0) <= LOOSEST * _norm(a)


def _norm(array: Array) -> float:
    return float(np.linalg.norm(array))


def _distance(a: Any, b: Any, factor: float) -> float:
    """‖a / factor - b‖, in the Euclidean norm, of two gradients; 0 if they cannot be subtracted."""
    if a is None or b is None or a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0
    return float(np.linalg.norm(a / factor - b))


# What forward gives


class Directions:
    """The directions along which a gradient of this shape is compared.

    These are the units of some elements, or of all of them, and then random ones.
    """

    def __init__(self, shape: tuple[int, ...], rng: np.random.Generator) -> None:
        self.shape = shape
        self.size = size = int(np.prod(shape))
        self.all_elements = size <= EVERY_ELEMENT
        sampled = np.sort(rng.choice(size, min(size, SAMPLED), replace=False))
        self.elements = np.arange(size) if self.all_elements else sampled
        self._seeds = [] if self.all_elements else [int(seed) for seed in rng.integers(2**32, size=DIRECTIONS)]

    def __iter__(self) -> Iterator[Array]:
        for element in self.elements:
            unit = np.zeros(self.shape)
            unit.flat[element] = 1.0
            yield unit
        yield from self._random()

    def _random(self) -> Iterator[Array]:
        return (np.asarray(np.random.default_rng(seed).standard_normal(self.shape)) for seed in self._seeds)

    def of(self, gradient: Array) -> Array:
        """The products of a gradient with each direction."""
        return np.array([*gradient.ravel()[self.elements], *((gradient * v).sum() for v in self._random())])

    def parts(self, kinks: Array) -> list[Array]:
        """Which products are judged together, without those at a kink: the elements', then the random directions'."""
        are_elements = np.arange(len(kinks)) < len(self.elements)
        return [are_elements & ~kinks] if self.all_elements else [are_elements & ~kinks, ~are_elements & ~kinks]

    def compared(self) -> str:
        """What is compared, in words."""
        if self.all_elements:
            return "each element"
        return f"{len(self.elements)} elements, {len(self._seeds)} directions"


class Reference(NamedTuple):
    """The gradient of a leaf as forward gives it.

    derivatives   along each direction, for each cotangent
    method        how they were taken
    kinks         which of the directions have a kink at the inputs
    """

    directions: Directions
    derivatives: Derivatives
    method: str
    kinks: Array


def _reference(pair: Pair, name: str, cotangents: Array, rng: np.random.Generator, why: str) -> Reference:
    x, outputs = pair.leaves[name], outputs_of(pair, name)
    directions = Directions(x.shape, rng)
    by = by_differences if why else by_complex_step
    derivatives = by(outputs, x, directions, cotangents)
    kinks = np.zeros(len(derivatives.values), bool)
    if has_kink(outputs, x, np.asarray(rng.standard_normal(x.shape)), cotangents):
        kinks = np.array([has_kink(outputs, x, v, cotangents) for v in directions])
    return Reference(directions, derivatives, "differences" if why else "complex step", kinks)


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


def _ratio(a: Array, b: Array) -> Array:
    """a / b, where 0 / 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((a == 0) & (b == 0), 0.0, a / b)


def _judged(name: str, reference: Reference, backwards: Backwards, zero: float) -> Row:
    """The row of a leaf.

    zero   how large the norm of a gradient that should be zero may be because of rounding
    """
    directions = reference.directions
    gradients, noise = backwards.of[name], backwards.noise[name]

    def row(error: Any, allowed: Any, verdict: str, said: str = "") -> Row:
        compared = directions.compared()
        return Row(name, directions.size, compared, reference.method, float(error), float(allowed), verdict, said)

    fault = _fault_of_form(gradients, directions.shape)
    if fault:
        return row(np.inf, THRESHOLD, WRONG, fault)
    with np.errstate(all="ignore"):
        ours = np.array([directions.of(gradient) for gradient in gradients]).T
        parts = [_measured(ours[part], reference, part, noise) for part in directions.parts(reference.kinks)]
    wrong = [part for part in parts if part.wrong and not part.is_zero(zero)]
    part = wrong[0] if wrong else parts[-1]
    error, allowed = (_ratio(norm, part.size)[part.worst] for norm in (part.difference, part.limit))
    if wrong:
        return row(error, allowed, WRONG, _wrong_in_words(ours[:, part.worst], reference, part.worst))
    if reference.kinks.any():
        return row(error, allowed, NONE, _kinks_in_words(reference))
    if part.is_zero(zero):
        return row(part.difference.max(), zero, NONE, ZERO)
    if allowed > LOOSEST:
        return row(error, allowed, NONE, f"cannot be judged: only an error above {allowed:.1e} could be seen here")
    return row(error, allowed, RIGHT)


ZERO = (
    "is zero for every random cotangent, as it should be, so that any multiple of the right gradient would pass: give "
    "other inputs, or look at more than a sum (softmax and LayerNorm have constant sums)"
)


def _fault_of_form(gradients: list[Any], shape: tuple[int, ...]) -> str:
    """What is wrong with the form of a gradient, in words; empty if nothing is."""
    for gradient in gradients:
        if gradient is None:
            return "is missing: backward returns none"
        if gradient.shape != shape:
            return f"has the shape {gradient.shape}; expected {shape}"
        if gradient.dtype.kind not in "fiu":
            return f"has the dtype {gradient.dtype}; expected real numbers"
    return ""


def _measured(ours: Array, reference: Reference, part: Array, noise: float) -> Measured:
    """The norms of the products with some of the directions, given as booleans."""
    values, errors = (array[part] for array in reference.derivatives)
    size = _norms(values)
    limit = np.maximum(THRESHOLD * size, SAFETY * np.maximum(_norms(errors), noise))
    return Measured(_norms(ours - values), size, limit)


def _norms(products: Array) -> Array:
    return np.sqrt((products * products).sum(axis=0))


def _wrong_in_words(ours: Array, reference: Reference, cotangent: int) -> str:
    directions, right = reference.directions, reference.derivatives.values[:, cotangent]
    if directions.all_elements:
        return in_words(ours.reshape(directions.shape), right.reshape(directions.shape))
    return in_words_of_samples(ours, right, directions.elements, directions.shape)


def _kinks_in_words(reference: Reference) -> str:
    directions = reference.directions
    kinked = directions.elements[reference.kinks[: len(directions.elements)]]
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


def _concluded(rows: tuple[Row, ...], faults: tuple[str, ...], notes: tuple[str, ...]) -> Report:
    wrong = [f"d_{row.argument}" for row in rows if row.verdict == WRONG]
    unjudged = [f"d_{row.argument}" for row in rows if row.verdict == NONE]
    if wrong or faults:
        reason = f"wrong: {', '.join(wrong)}" if wrong else faults[0]
        return Report("fail", reason, rows, faults, notes)
    if unjudged:
        return Report("no verdict", f"could not be judged: {', '.join(unjudged)}", rows, faults, notes)
    coarsest = max(row.allowed for row in rows)
    return Report("pass", f"any relative error above {coarsest:.1e} would have been seen", rows, faults, notes)
