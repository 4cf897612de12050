"""A forward and a backward that somebody wrote, called in one way whatever their form.

What is accepted:

    forward(*inputs) -> (output, saved)     the contract of an operation: a tuple of exactly two
    backward(d_output, saved) -> gradients

    forward(*inputs) -> output              nothing is saved: anything else than a tuple of two
    backward(d_output, *inputs) -> gradients

    output       an array or a number; or several, as a tuple, a NamedTuple or a dict of arrays. An output that is no
                 floating-point array (indices, masks) has the cotangent None
    d_output     the same structure
    gradients    a NamedTuple or a dict with the names of forward's arguments (`x`, or `d_x`, `dx`, `grad_x`); or a
                 tuple with one for each argument, or one for each that has a gradient; or one array, if there is one
    inputs       a dict by the names of forward's arguments, of which the keyword-only ones are passed by keyword; or a
                 sequence in their order

An argument has a gradient if it is a NumPy array of floating-point numbers, or a tree of such arrays (a tuple, a
NamedTuple or a dict: parameters of a layer). Anything else is passed on as it is. Arrays are taken as float64.
"""

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from sysconfig import get_path
from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.shapes import Array
from numpygpt.tree import children, mapped_by_name, named

#: How a gradient's name may begin.
PREFIXES = ("", "d_", "d", "grad_")


class Ran(NamedTuple):
    """What a forward returned.

    outputs   its floating-point outputs, one after the other, as one flat array
    tree      all of its outputs
    saved     what it saved; NOTHING if it saves nothing
    given     the inputs that it was given, by name
    """

    outputs: Array
    tree: Any
    saved: Any
    given: Mapping[str, Any]


NOTHING = object()


class Pair:
    """A forward and a backward at given inputs.

    leaves   the arrays that have a gradient, by name, float64: `x`, or `parameters.weight` in a tree

    Raises InputError for inputs that do not fit forward, for none that has a gradient, and for complex ones.
    """

    def __init__(self, forward: Callable[..., Any], backward: Callable[..., Any], inputs: Any) -> None:
        for what, function in (("forward", forward), ("backward", backward)):
            if not callable(function):
                raise InputError(f"{what} is a {type(function).__name__}; expected a function")
        self._forward, self._backward = forward, backward
        self._inputs, self._keywords = _by_name(forward, inputs)
        self._trees = {name: value for name, value in self._inputs.items() if _is_tree(value)}
        self.leaves = {name: _in_float64(name, leaf) for name, leaf in named(self._trees) if _has_gradient(leaf)}
        if not self.leaves:
            raise InputError(
                f"none of the inputs ({', '.join(self._inputs) or 'there are none'}) has a gradient; expected at least "
                f"one NumPy array of floating-point numbers"
            )

    # Forward

    def run(self, replaced: Mapping[str, Array] = {}) -> Ran:
        """Call forward with copies of the inputs, of which some leaves may be replaced.

        Raises InputError if forward raises an exception, and if it has no floating-point output.
        """
        inputs = self.inputs(replaced)
        returned = called("forward", self._forward, *self._arguments(inputs), **self._options(inputs))
        return self._ran(returned, inputs)

    def inputs(self, replaced: Mapping[str, Array] = {}) -> dict[str, Any]:
        """Copies of the inputs, by name, of which some leaves may be replaced."""
        now = {**self.leaves, **replaced}
        return self._inputs | mapped_by_name(
            lambda name, array: np.array(now.get(name, array), subok=True), self._trees
        )

    def _arguments(self, inputs: Mapping[str, Any]) -> list[Any]:
        return [value for name, value in inputs.items() if name not in self._keywords]

    def _options(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: inputs[name] for name in self._keywords}

    @staticmethod
    def _ran(returned: Any, given: Mapping[str, Any]) -> Ran:
        output, saved = returned if _is_pair(returned) else (returned, NOTHING)
        tree = _as_tree(output)
        parts = [array.ravel() for _, array in named(tree) if _has_gradient(array)]
        if not parts:
            raise InputError(
                f"forward returned {_kind_of(returned)} without a floating-point array; expected (output, saved), or "
                f"the output alone"
            )
        return Ran(np.concatenate(parts), tree, saved, given)

    # Backward

    def call_backward(self, cotangent: Array, ran: Ran) -> tuple[Any, bool]:
        """What backward returns for a flat cotangent of the outputs, and whether it left its d_output as it was.

        Raises InputError if backward raises an exception.
        """
        d_output = _split(cotangent, ran.tree)
        given = [ran.saved] if ran.saved is not NOTHING else self._arguments(ran.given)
        try:
            returned = called("backward", self._backward, d_output, *given)
        except InputError as error:
            hint = self.second_output(ran)
            raise InputError(f"{error}; {hint}" if hint else str(error)) from error
        before, after = named(_as_tree(_split(cotangent, ran.tree))), named(_as_tree(d_output))
        return returned, all(np.array_equal(a[1], b[1]) for a, b in zip(before, after, strict=True))

    @staticmethod
    def second_output(ran: Ran) -> str:
        """What to do if what the forward saved is a second output; empty if it looks like none.

        A saved array may well be meant, so this is said only if something is wrong.
        """
        if isinstance(ran.saved, np.ndarray | np.floating | float):
            return (
                "the second array that forward returns was taken for what it saves: two outputs are returned as "
                "((first, second), None)"
            )
        return ""

    def changed(self, ran: Ran) -> list[str]:
        """The names of the inputs that are no longer as they were given to this run."""
        now = dict(named({name: ran.given[name] for name in self._trees}))
        return [
            name for name, array in named(self._trees) if not np.array_equal(now[name], self.leaves.get(name, array))
        ]

    def gradients(self, returned: Any) -> tuple[dict[str, Any], list[str]]:
        """The gradient of each leaf by name, and what is wrong with the form of what backward returned.

        A gradient that is missing is None.
        """
        by_argument, faults = self._by_argument(returned)
        found: dict[str, Any] = {}
        for name, value in by_argument.items():
            found |= {leaf: array for leaf, array in leaves(value, name) if array is not None}
        gradients = {name: found.pop(name, None) for name in self.leaves}
        known = {name for name, _ in named(self._trees)}
        faults += [
            f"backward returns a gradient of {name}, which is {'no array of floats' if name in known else 'no input'}"
            for name in found
        ]
        return gradients, faults

    def _by_argument(self, returned: Any) -> tuple[dict[str, Any], list[str]]:
        names = list(self._inputs)
        differentiated = [name for name in names if any(True for _ in self._leaves_of(name))]
        if hasattr(returned, "_fields") or isinstance(returned, Mapping):
            given = children(returned)
            spelled = {f"{prefix}{name}": name for prefix in reversed(PREFIXES) for name in names}
            return {spelled.get(name, name): value for name, value in given.items()}, []
        values = list(returned) if isinstance(returned, tuple | list) else [returned]
        for expected in (names, differentiated):
            if len(values) == len(expected):
                return dict(zip(expected, values, strict=True)), []
        return {}, [
            f"backward returns {len(values)} gradient{'s' * (len(values) != 1)}; expected {len(differentiated)}, for "
            f"{', '.join(differentiated)}"
        ]

    def _leaves_of(self, argument: str) -> Iterator[str]:
        return (name for name in self.leaves if name == argument or name.startswith(f"{argument}."))


def _split(cotangent: Array, tree: Any) -> Any:
    """The cotangent in the structure of the outputs; None for an output that has none."""
    with_gradient = {name: array for name, array in named(tree) if _has_gradient(array)}
    ends = np.cumsum([array.size for array in with_gradient.values()])
    parts = {
        name: cotangent[end - array.size : end].reshape(array.shape).copy()[()]
        for (name, array), end in zip(with_gradient.items(), ends, strict=True)
    }
    return mapped_by_name(lambda name, array: parts.get(name), tree)


def called(what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What the function returns.

    Raises InputError, with the message and the place, if the function raises an exception or ends the program.
    """
    try:
        return function(*arguments, **options)
    except InputError:
        raise
    except SystemExit as error:
        raise InputError(f"{what} ends the program: {error!r}{place_of(error)}") from error
    except Exception as error:
        raise InputError(f"{what} raises {type(error).__name__}: {error}{place_of(error)}") from error


def place_of(error: BaseException) -> str:
    """Where the exception was raised: the last line that is not in an installed package; empty if there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if is_own(frame.filename)]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def is_own(filename: str) -> bool:
    """Whether a file is the user's own: not of an installed package, nor of these checks, nor what beartype wrote."""
    path = Path(filename)
    return not (
        "site-packages" in path.parts
        or path.is_relative_to(get_path("stdlib"))
        or path.parent == Path(__file__).parent
        or filename.startswith("<@beartype(")
    )


def _by_name(forward: Callable[..., Any], inputs: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The inputs by the names of forward's arguments, in its order, and which of them are passed by keyword."""
    positional, keywords, required, more = _signature(forward)
    by_position, by_keyword = "*" in more.split(), "**" in more
    if isinstance(inputs, np.ndarray):
        inputs = (inputs,)
    if not isinstance(inputs, Mapping):
        if not isinstance(inputs, Sequence) or isinstance(inputs, str):
            raise InputError(f"the inputs are a {type(inputs).__name__}; expected a dict, or a tuple in forward order")
        if len(inputs) > len(positional) and not by_position:
            raise InputError(
                f"there are {len(inputs)} inputs; forward takes {len(positional)}: {', '.join(positional)}"
            )
        positional += [f"argument_{i}" for i in range(len(positional), len(inputs))]
        inputs = dict(zip(positional, inputs, strict=False))
    unknown = [name for name in inputs if name not in (*positional, *keywords)]
    if by_keyword:
        keywords, unknown = [*keywords, *unknown], []
    missing = [name for name in required if name not in inputs]
    if missing or (unknown and not by_position):
        raise InputError(
            f"the inputs do not fit forward({', '.join((*positional, *keywords))}): missing "
            f"{', '.join(missing) or 'none'}; unknown {', '.join(unknown) or 'none'}"
        )
    order = [name for name in (*positional, *unknown, *keywords) if name in inputs]
    return {name: inputs[name] for name in order}, tuple(name for name in keywords if name in inputs)


def _signature(forward: Callable[..., Any]) -> tuple[list[str], list[str], list[str], str]:
    """The names of the positional, the keyword-only and the required arguments, and which more it takes: * or **."""
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):  # some functions of C have no signature
        return [], [], [], "*"
    named_kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    variadic = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return (
        [parameter.name for parameter in parameters if parameter.kind in named_kinds],
        [parameter.name for parameter in parameters if parameter.kind == inspect.Parameter.KEYWORD_ONLY],
        [
            parameter.name
            for parameter in parameters
            if parameter.default is inspect.Parameter.empty and parameter.kind not in variadic
        ],
        " ".join(variadic[parameter.kind] for parameter in parameters if parameter.kind in variadic),
    )


def _is_pair(returned: Any) -> bool:
    return type(returned) is tuple and len(returned) == 2


def _is_tree(value: Any) -> bool:
    """Whether a value is an array or holds arrays and nothing else (None stands for an absent one)."""
    return isinstance(value, np.ndarray) or (_holds_arrays_alone(value) and any(True for _ in named(value)))


def _holds_arrays_alone(value: Any) -> bool:
    if value is None or isinstance(value, np.ndarray):
        return True
    if not isinstance(value, tuple | list | Mapping) and not hasattr(value, "children"):
        return False
    return all(map(_holds_arrays_alone, children(value).values()))


def _as_tree(output: Any) -> Any:
    """The outputs as a tree of arrays; a number is an array without axes."""
    if isinstance(output, tuple | list):
        parts = [_as_tree(part) for part in output]
        return output._make(parts) if hasattr(output, "_make") else tuple(parts)
    if isinstance(output, Mapping):
        return {name: _as_tree(part) for name, part in output.items()}
    return None if output is None else np.asarray(output)


def _has_gradient(array: Array) -> bool:
    return bool(np.issubdtype(array.dtype, np.inexact))


def are_numbers(gradient: Any) -> bool:
    """Whether a gradient is an array of numbers; what is missing or has another dtype is none."""
    return gradient is not None and gradient.dtype.kind in "fiuc"


def _in_float64(name: str, leaf: Array) -> Array:
    if np.issubdtype(leaf.dtype, np.complexfloating):
        raise InputError(f"the input {name} is {leaf.dtype}; expected real numbers: pass the two parts as two arrays")
    if not np.isfinite(leaf).all():
        raise InputError(
            f"the input {name} has values that are not finite; expected finite numbers (a mask can be boolean, or a "
            f"constant inside forward)"
        )
    return leaf.astype(np.float64)


def _kind_of(returned: Any) -> str:
    if _is_pair(returned):
        return f"({', '.join(type(part).__name__ for part in returned)})"
    return f"a {type(returned).__name__}"


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The names and values of a tree's leaves, whatever they are: numbers become arrays."""
    if isinstance(value, tuple | list | Mapping) or hasattr(value, "children"):
        for name, child in children(value).items():
            yield from leaves(child, f"{path}.{name}")
    else:
        yield path, value if value is None else np.asarray(value)
