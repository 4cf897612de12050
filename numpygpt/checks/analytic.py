"""Whether a forward carries complex numbers, so that complex step can differentiate it: found out by trying.

The derivative along a random direction is taken by complex step and by central differences. If the forward raises an
exception for complex numbers, loses the imaginary part, or gives another derivative, it does not carry them. Many NumPy
functions do one of the three: np.abs, np.var, np.std, np.linalg.norm, np.vdot, conj, a cast to a real type. The forward
is then run once more on arrays that notice what is done with them, to name the function and its line. A function that
takes a real part may do no harm: subtracting x.real.max() in softmax changes no derivative.

If both derivatives differ and no such function was seen, one of the methods is wrong, and nobody knows which: the
forward may drop the imaginary part in the code of another library. Then the differences are taken if they are accurate
and the backward agrees with them, and complex step is taken if they are not accurate and the backward agrees with it.
Else there is no verdict. A backward that agrees with complex step against accurate differences does not pass: to treat
a variance as a constant is a common bug, and complex step makes the same mistake where the variance is real.
"""

import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numpygpt.checks.derivatives import (
    SAFETY,
    STEP,
    Derivatives,
    by_complex_step,
    by_differences,
    has_kink,
    size_along,
)
from numpygpt.checks.pairs import Pair, are_numbers, is_own
from numpygpt.errors import InputError
from numpygpt.shapes import Array, Inexact

#: How far apart the derivatives of an analytic function may be, relative to the larger of them, beside the error of the
#: differences.
SAME = 1e-6
#: The largest estimated error of differences that can decide anything, relative to the derivative.
LOOSEST = 1e-3


class Method(NamedTuple):
    """How the gradient of a leaf is taken from the forward.

    why        why by differences, in words; empty if by complex step
    disputed   whether complex step and differences give two derivatives, so that neither can be trusted
    """

    why: str = ""
    disputed: bool = False


def outputs_of(pair: Pair, name: str) -> Callable[[Array], Array]:
    """Forward's outputs as a function of the leaf of that name. A complex number that is made real is an exception."""

    def outputs(leaf: Any) -> Array:
        with complex_numbers_stay():
            return pair.run({name: np.asarray(leaf)}).outputs

    return outputs


@contextmanager
def complex_numbers_stay() -> Iterator[None]:
    """Within the `with`, NumPy's warning that an imaginary part is discarded is an exception; others are ignored."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", np.exceptions.ComplexWarning)
        yield


def method_for(
    pair: Pair,
    name: str,
    cotangents: Inexact[Array, "cotangents n"],
    gradients: Sequence[Any],
    rng: np.random.Generator,
) -> Method:
    """How the gradient of the leaf of that name is taken from the forward.

    gradients   what backward gives for the leaf, one for each cotangent; they decide in a dispute alone
    """
    x = pair.leaves[name]
    direction = np.asarray(rng.standard_normal(x.shape))
    outputs = outputs_of(pair, name)
    try:
        if not np.iscomplexobj(outputs(x + 1j * STEP * direction)):
            return Method(f"forward gives real numbers for a complex {name}{_droppers(pair, name)}")
        by_step = by_complex_step(outputs, x, [direction], cotangents).values
    except InputError as error:
        return Method(f"for a complex {name}, {error}")
    taken = by_differences(outputs, x, [direction], cotangents)
    scale = np.hypot.reduce(cotangents * pair.run().outputs, axis=1).max() / size_along(x, direction)
    agree, accurate = _agree(by_step, taken), _is_accurate(taken, scale)
    droppers = "" if agree and accurate else _droppers(pair, name)
    if agree and not droppers:
        return Method()
    if droppers:
        return Method(f"forward drops the imaginary part of a complex {name} on its way{droppers}")
    if has_kink(outputs, x, direction, cotangents):
        return Method("the function has a kink there, of which complex step sees one side alone")
    ours = _along(direction, gradients)
    if not accurate and _agree(ours, Derivatives(by_step, np.zeros_like(by_step), taken.kinks)):
        return Method()
    right = accurate and _agree(ours, taken)
    return Method(f"complex step gives another derivative by {name} than differences do", disputed=not right)


def _along(direction: Array, gradients: Sequence[Any]) -> Array:
    """The derivatives along the direction by these gradients, one for each cotangent; NaN for those that have none."""
    usable = [are_numbers(gradient) and gradient.shape == direction.shape for gradient in gradients]
    return np.array([
        [(g * direction).sum() if fits else np.nan for g, fits in zip(gradients, usable, strict=True)]
    ])  # fmt: skip


def _agree(values: Array, taken: Derivatives) -> bool:
    """Whether the derivatives are those by differences, within the error of these."""
    allowed = SAFETY * taken.errors + SAME * np.maximum(np.abs(values), np.abs(taken.values))
    return bool((np.abs(values - taken.values) <= allowed).all())


def _is_accurate(taken: Derivatives, scale: float) -> bool:
    """Whether the derivatives can show a loss, one of the size `scale` if they are zero themselves."""
    size = max(float(np.linalg.norm(taken.values)), scale)
    return bool(np.linalg.norm(SAFETY * taken.errors) <= LOOSEST * size)


# Who drops it


def _droppers(pair: Pair, name: str) -> str:
    """The functions that turned complex numbers into real ones, or conjugated them, and their lines."""
    seen: list[str] = []
    leaf = np.asarray(pair.leaves[name] + 1j * STEP).view(Watched)
    leaf.seen = seen
    try:
        with complex_numbers_stay():
            pair.run({name: leaf})
    except InputError:
        pass  # it was an exception for these arrays alone; what was seen before still counts
    return f": {', '.join(dict.fromkeys(seen))}" if seen else ""


class Watched(np.ndarray):
    """A complex array that writes down, in `seen`, what drops or conjugates its imaginary part or that of a result."""

    seen: list[str]

    def __array_finalize__(self, origin: Any) -> None:
        self.seen = getattr(origin, "seen", [])

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        plain = [_plain(array) for array in inputs]
        if out:
            options["out"] = tuple(_plain(array) for array in out)
        result = getattr(ufunc, method)(*plain, **options)
        if any(map(np.iscomplexobj, plain)):
            self._note(f"np.{ufunc.__name__}", result, conjugates=ufunc is np.conjugate)
        return self._watched(out[0] if out else result)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        plain_arguments = _plain_tree(arguments)
        result = function(*plain_arguments, **{key: _plain_tree(value) for key, value in options.items()})
        if _any_complex(plain_arguments):
            module = function.__module__.replace("numpy", "np", 1)
            conjugates = function.__name__ in ("vdot", "vecdot")
            self._note(f"{module}.{function.__name__}", result, conjugates=conjugates)
        return self._watched(result)

    @property  # type: ignore[misc]  # NumPy's can be written to
    def real(self) -> Any:
        """The real part, which is written down."""
        return self._dropping(".real", np.asarray(self).real)

    def astype(self, dtype: Any, *arguments: Any, **options: Any) -> Any:
        """A cast, which is written down if it is to a real type."""
        return self._dropping(f".astype({np.dtype(dtype)})", np.asarray(self).astype(dtype, *arguments, **options))

    def conj(self) -> Any:
        """The conjugate, which is written down."""
        return np.conjugate(self)

    conjugate = conj

    def var(self, *arguments: Any, **options: Any) -> Any:
        """The variance, which is written down."""
        return self._dropping(".var", np.asarray(self).var(*arguments, **options))

    def std(self, *arguments: Any, **options: Any) -> Any:
        """The standard deviation, which is written down."""
        return self._dropping(".std", np.asarray(self).std(*arguments, **options))

    def _dropping(self, what: str, result: Any) -> Any:
        if np.iscomplexobj(np.asarray(self)):
            self._note(what, result)
        return self._watched(result)

    def _note(self, what: str, result: Any, *, conjugates: bool = False) -> None:
        results = result if isinstance(result, tuple) else (result,)
        real = any(np.issubdtype(np.asarray(part).dtype, np.floating) for part in results)
        if conjugates or real:
            self.seen.append(f"{what}{_line()}")

    def _watched(self, result: Any) -> Any:
        if isinstance(result, tuple):
            return tuple(map(self._watched, result))
        if not isinstance(result, np.ndarray | np.generic) or result.dtype == bool:
            return result
        watched = np.asarray(result).view(Watched)
        watched.seen = self.seen
        return watched


def _plain(array: Any) -> Any:
    return array.view(np.ndarray) if isinstance(array, Watched) else array


def _plain_tree(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_plain_tree, value))
    return _plain(value)


def _any_complex(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_any_complex, value))
    return isinstance(value, np.ndarray | np.generic) and np.iscomplexobj(value)


def _line() -> str:
    """The user's line that is being run."""
    frames = [frame for frame in traceback.extract_stack() if is_own(frame.filename)]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
