"""What an optimizer's values and arrays may be. Each check raises InputError, so that nothing is changed before it."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.shapes import Array

#: Enough for any training, and few enough for beta**steps to be computed.
MOST_STEPS = 2**63 - 1
#: The moments that are means or sums of squares.
OF_SQUARES = ("exp_avg_sq", "square_avg", "sum")
INTEGERS = (int, np.integer)
NUMBERS = (*INTEGERS, float, np.floating)


def _is_a(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether it is of one of these types; Python counts True and False as integers, and we do not."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def number(name: str, value: Any) -> float:
    """The value as a float, which must be finite and not negative."""
    if _is_a(value, NUMBERS) and 0 <= value <= sys.float_info.max:
        return float(value)
    raise InputError(f"{name} is {value!r:.80}; expected a number of 0 or more")


def positive_eps(eps: Any, parameters: Mapping[str, Array]) -> float:
    """The value as a float, which must be above 0 in the dtype of each parameter, too."""
    value = number("eps", eps)
    narrowest = max((np.finfo(array.dtype) for array in parameters.values()), key=lambda dtype: dtype.tiny)
    if value < narrowest.tiny:
        raise InputError(
            f"eps is {value:g}; expected at least {narrowest.tiny}, the smallest normal number of {narrowest.dtype}"
        )
    return value


def share(name: str, value: Any) -> float:
    """The value as a float, which must be in [0, 1)."""
    if _is_a(value, NUMBERS) and 0 <= value < 1:
        return float(value)
    raise InputError(f"{name} is {value!r:.80}; expected a number in [0, 1)")


def truth(name: str, value: Any) -> bool:
    """The value, which must be True or False."""
    if isinstance(value, bool):
        return value
    raise InputError(f"{name} is {value!r:.80}; expected True or False")


def two_betas(betas: Any) -> tuple[float, float]:
    """The values as a pair, each in [0, 1)."""
    if isinstance(betas, list | tuple) and len(betas) == 2:
        beta1, beta2 = betas
        if all(_is_a(beta, NUMBERS) and 0 <= beta < 1 for beta in betas):
            return float(beta1), float(beta2)
    raise InputError(f"betas are {betas!r:.80}; expected two numbers in [0, 1)")


def step_count(step: Any) -> int:
    """The value as a number of steps, 0 or more."""
    if _is_a(step, INTEGERS) and 0 <= step <= MOST_STEPS:
        return int(step)
    raise InputError(f"step is {step!r:.80}; expected an integer of 0 or more")


def refuse_what_cannot_be_trained(parameters: Mapping[str, Any]) -> None:
    """InputError if there are none, and unless all are arrays of float32 or a wider floating-point type.

    In float16, the squares of gradients below 1e-4 are 0, and so is PyTorch's eps.
    """
    if not parameters:
        raise InputError("there are no parameters to train; expected at least one")
    bad = [
        f"{name} {array.dtype if isinstance(array, np.ndarray) else type(array).__name__}"
        for name, array in parameters.items()
        if not isinstance(array, np.ndarray)
        or not np.issubdtype(array.dtype, np.floating)
        or not np.can_cast(np.float32, array.dtype)
    ]
    if bad:
        raise InputError(f"parameters to train are {bad}; expected arrays of float32 or float64")


def refuse_changed_model(arrays: Mapping[str, Array], expected: Mapping[str, tuple[Any, Any]]) -> None:
    """InputError unless the model's arrays are those that the optimizer was made for.

    expected   {name: (shape, dtype)}
    """
    changed = [
        name
        for name, layout in expected.items()
        if name not in arrays or (arrays[name].shape, arrays[name].dtype) != layout
    ]
    if changed:
        raise InputError(
            f"the model has changed since its optimizer was made: it has no {changed}, or in another shape or dtype; "
            f"make a new optimizer"
        )


def refuse_parts_of_arrays(arrays: Mapping[str, Array]) -> None:
    """InputError for arrays that show a part of a larger one: a copy would take them out of it."""
    parts = [
        name for name, array in arrays.items() if isinstance(array.base, np.ndarray) and array.base.size > array.size
    ]
    if parts:
        raise InputError(
            f"an optimizer of parts of other arrays cannot be copied or pickled: {parts} would no longer be parts; "
            f"give it a model, and name what is trained: AdamW(model, trained=...)"
        )


def refuse_unfit(what: str, given: Any, parameters: Mapping[str, Array], *, same_dtype: bool = False) -> None:
    """InputError, with every fault listed, unless there is an array of the same shape for each parameter.

    same_dtype   its dtype must be the parameter's; otherwise it is enough that it can be cast to it
    """
    if not isinstance(given, Mapping):
        raise InputError(f"{what} are of type {type(given).__name__}; expected arrays by the parameters' names")
    arrays = {name: array for name, array in given.items() if isinstance(array, np.ndarray)}
    both = [(name, arrays[name], expected) for name, expected in parameters.items() if name in arrays]
    casting: Any = "equiv" if same_dtype else "same_kind"
    faults = {
        "missing": [name for name in parameters if name not in given],
        "unexpected": [name for name in given if name not in parameters],
        "misshaped": [
            f"{name} {array.shape}, expected {expected.shape}"
            for name, array, expected in both
            if array.shape != expected.shape
        ],
        "of another dtype": [
            f"{name} {array.dtype}, expected {expected.dtype}"
            for name, array, expected in both
            if not np.can_cast(array.dtype, expected.dtype, casting)
        ],
        "no arrays": [f"{name} {type(given[name]).__name__}" for name in given if name not in arrays],
    }
    listed = ", ".join(f"{fault} {names}" for fault, names in faults.items() if names)
    if listed:
        raise InputError(f"{what} do not fit the parameters: {listed}")


def refuse_impossible(moments: str, arrays: Mapping[str, Array]) -> None:
    """InputError for moments that no training can have: not finite, or a negative mean or sum of squares."""
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if moments in OF_SQUARES:
        bad += [name for name, array in arrays.items() if (array < 0).any()]
    if bad:
        raise InputError(f"{moments} of {bad} cannot be: expected finite values, and squares of 0 or more")
