"""Experiments with gradient checks: how small an error each method sees, at which step, and which planted bug.

A *method* is a function of (forward, backward, inputs) that says what it found wrong; "" if nothing. Ours are gradcheck
as it is, which takes complex step where it can, and gradcheck by differences alone. Other packages bring theirs by
entry points of the group `numpygpt.gradient_checkers`: functions without arguments that return methods by name.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import numpy as np

from numpygpt.checks.analytic import outputs_of
from numpygpt.checks.derivatives import by_complex_step, by_differences
from numpygpt.checks.gradient_report import WRONG
from numpygpt.checks.gradients import gradcheck
from numpygpt.checks.lookup import Operation, example_of_record, find
from numpygpt.checks.own_gradients import SMALL_MODEL
from numpygpt.checks.pairs import Pair, leaves
from numpygpt.checks.planting import Bug, planted
from numpygpt.checks.record import Record
from numpygpt.checks.records import BUGS, RECORDS
from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import Array

Method = Callable[[Any, Any, Any], str]

#: The group of entry points by which other packages bring their own gradient checks.
BROUGHT = "numpygpt.gradient_checkers"


def methods() -> tuple[dict[str, Method], list[str]]:
    """The methods by name, and why others are not there."""
    found: dict[str, Method] = {"complex step": by_our_best, "differences": by_our_differences}
    absent = []
    for entry in entry_points(group=BROUGHT):
        try:
            found |= entry.load()()
        except ImportError as error:
            absent.append(f"the checks of {entry.name} are left out: {error}")
    return found, absent


def by_our_best(forward: Any, backward: Any, inputs: Any) -> str:
    """gradcheck as it is."""
    report = gradcheck(forward, backward, inputs)
    wrong = [f"d_{row.argument} (error {row.error:.1e})" for row in report.rows if row.verdict == WRONG]
    return ", ".join([*report.faults, *wrong])


def by_our_differences(forward: Any, backward: Any, inputs: Any) -> str:
    """gradcheck of a forward that takes real numbers alone."""
    return by_our_best(real_only(forward), backward, inputs)


def real_only(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward, which raises an exception for complex numbers: it can be differentiated by differences alone."""

    @functools.wraps(forward)
    def refusing(*arguments: Any, **options: Any) -> Any:
        if any(np.iscomplexobj(leaf) for _, leaf in leaves((*arguments, *options.values()), "")):
            raise TypeError("this experiment takes differences")
        return forward(*arguments, **options)

    return refusing


# --power

#: The relative errors that are tried, one below the other.
SIZES = 10.0 ** -np.arange(1, 15)
#: How often an error of each size is drawn; a method has to see it each time.
DRAWS = 3
#: The operations that are taken if none is named.
OPERATIONS = ("linear", "layer_norm", "softmax", "gelu", "attention", "cross_entropy")


def smallest_seen(operation: Operation, method: Method, seed: int) -> float:
    """The smallest of SIZES that the method sees as a relative error in one gradient; infinite if it sees none.

    The errors are random, in any one gradient. A larger error is taken to be seen wherever a smaller one is.
    """
    inputs = operation.inputs(np.random.default_rng(seed))
    low, high = 0, len(SIZES)  # SIZES[low - 1] is seen; SIZES[high] is not
    while low < high:
        middle = (low + high) // 2
        sees = all(
            method(operation.forward, with_error(operation, inputs, SIZES[middle], seed + draw), inputs)
            for draw in range(DRAWS)
        )
        low, high = (middle + 1, high) if sees else (low, middle)
    return float(SIZES[low - 1]) if low else np.inf


def with_error(operation: Operation, inputs: Any, size: float, seed: int) -> Callable[..., Any]:
    """The backward with a random error of this relative size, in the Euclidean norm, in one of its gradients."""
    pair = Pair(operation.forward, operation.backward, inputs)
    spoiled = str(np.random.default_rng([seed, 2]).choice(list(pair.leaves)))

    def backward(d_output: Any, *given: Any) -> dict[str, Any]:
        gradients, _ = pair.gradients(operation.backward(d_output, *given))
        right = gradients[spoiled]
        direction = np.asarray(np.random.default_rng([seed, 3]).standard_normal(right.shape))
        gradients[spoiled] = right + size * np.linalg.norm(right) / np.linalg.norm(direction) * direction
        return gradients

    return backward


# --sweep

#: The steps of the sweep.
SWEPT = 10.0 ** -np.arange(0, 25)
#: How many random directions the error at a step is measured along.
DIRECTIONS = 8


def sweep(operation: Operation, seed: int) -> dict[str, Array]:
    """{method: its relative error at each of SWEPT}, for the derivatives by the operation's first leaf.

    The errors are root mean squares over random directions, relative to the derivatives' own. The reference is complex
    step in float64 with h = 1e-30, or extrapolated differences if the forward takes no complex numbers. Then the errors
    of complex step are NaN.
    """
    pair = Pair(operation.forward, operation.backward, operation.inputs(np.random.default_rng(seed)))
    name, x = next(iter(pair.leaves.items()))
    rng = np.random.default_rng([seed, 1])  # not that of the inputs
    directions = [np.asarray(rng.standard_normal(x.shape)) for _ in range(DIRECTIONS)]
    cotangents = rng.standard_normal((1, pair.run().outputs.size))
    outputs = outputs_of(pair, name)
    try:
        right = by_complex_step(outputs, x, directions, cotangents).values
    except InputError:
        right = by_differences(outputs, x, directions, cotangents).values
    size = np.sqrt((right * right).mean())
    errors = {}
    for dtype in (np.float32, np.float64):
        f = functools.partial(_in_dtype, pair, name, dtype)
        for method, derivative in SIMPLE.items():
            taken = np.array([[cotangents @ derivative(f, x, v, h) for v in directions] for h in SWEPT])
            errors[f"{method}, {np.dtype(dtype)}"] = np.sqrt(((taken - right) ** 2).mean(axis=(1, 2))) / size
    return errors


def _in_dtype(pair: Pair, name: str, dtype: Any, leaf: Array) -> Array:
    """The outputs, computed in float32 or float64, or in complex numbers of this precision, from this leaf."""
    inputs = {other: array.astype(dtype) for other, array in pair.leaves.items()}
    inputs[name] = leaf.astype(np.result_type(dtype, np.complex64) if np.iscomplexobj(leaf) else dtype)
    with np.errstate(all="ignore"):
        outputs = pair.run(inputs).outputs
    return outputs.astype(np.complex128 if np.iscomplexobj(outputs) else np.float64)


def _forward_difference(f: Callable[[Array], Array], x: Array, v: Array, h: float) -> Array:
    return (f(x + h * v) - f(x)) / h


def _central_difference(f: Callable[[Array], Array], x: Array, v: Array, h: float) -> Array:
    return (f(x + h * v) - f(x - h * v)) / (2 * h)


def _complex_step(f: Callable[[Array], Array], x: Array, v: Array, h: float) -> Array:
    try:
        outputs = f(x + 1j * h * v)
    except InputError:
        return np.full_like(f(x), np.nan)
    return outputs.imag / h if np.iscomplexobj(outputs) else np.full_like(outputs, np.nan)


#: Derivatives along a direction, with one step.
SIMPLE: Mapping[str, Callable[..., Array]] = {
    "forward": _forward_difference, "central": _central_difference, "complex": _complex_step
}  # fmt: skip


# --bug


class Sight(NamedTuple):
    """What a method says of a planted bug; "" if it sees nothing."""

    method: str
    says: str


def what_sees(bug: Bug, seed: int) -> tuple[str, list[Sight]]:
    """Where the bug was planted, and what each method says of the gradients there."""
    operation = _place_of(bug)
    inputs = operation.inputs(np.random.default_rng(seed))
    with planted(bug):
        return operation.name, [
            Sight(name, _said(method, operation, inputs)) for name, method in methods()[0].items()
        ]


def _said(method: Method, operation: Operation, inputs: Any) -> str:
    try:
        return method(operation.forward, operation.backward, inputs)
    except InputError as error:
        return str(error)


def bug_of(name: str) -> Bug:
    """The planted bug of that name. InputError, with the names that are most like it, if there is none."""
    if name not in BUGS:
        alike = ", ".join(get_close_matches(name, BUGS, n=3, cutoff=0))
        raise InputError(
            f"there is no planted bug {name!r}; the names most like it are {alike}, and all {len(BUGS)} stand in "
            f"numpygpt/checks/records"
        )
    return BUGS[name]


def _place_of(bug: Bug) -> Operation:
    """The operation in whose record the bug is, or a small whole model."""
    for record in RECORDS.values():
        if bug in record.bugs and isinstance(record, Record) and not isinstance(record.complex_step, str):
            module = record.module
            return Operation(module.__name__, module.forward, module.backward, example_of_record(record))
    return small_model()


def small_model(config: GPTConfig = SMALL_MODEL) -> Operation:
    """A small whole model with random weights and dropout, as an operation of its parameters whose output is logits."""
    model = GPTModel(config, dtype=np.float64)
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, config.vocab_size, (2, config.context_length - 1))
    masks = model.draw_dropout_masks(rng, *inputs.shape)

    def forward(parameters: Any) -> tuple[Array, Any]:
        other = copy.copy(model)
        other.parameters = parameters
        logits, saved = other.forward(inputs, masks=masks)
        return logits, (other, saved)

    def backward(d_logits: Array, saved: Any) -> dict[str, Array]:
        other, inner = saved
        return {f"parameters.{name}": gradient for name, gradient in other.backward(d_logits, inner).items()}

    def example(rng: np.random.Generator) -> dict[str, Any]:
        for parameter in model.named_parameters().values():
            parameter[...] = rng.standard_normal(parameter.shape) / 2
        return {"parameters": model.parameters}

    return Operation("a small whole model", forward, backward, example)


def operations(name: str | None) -> list[Operation]:
    """The operation that is named, or those of numpygpt that experiments take otherwise."""
    return [find(name)] if name else [find(f"numpygpt.ops.{operation}") for operation in OPERATIONS]
