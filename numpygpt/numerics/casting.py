"""Operations that run in a shorter number format than their arrays have, forward and backward.

The arrays stay float32, and hold numbers of the format: so a step on a processor without the format computes what one
with it computes. `forward` and `backward` round what an operation reads and what it gives; within it, it computes in
float32 and rounds once at the end, as tensor cores and the kernels of PyTorch do.

    forward    y = round(operation(round(operands)))
    backward   d_operands = round(operation.backward(round(d_y)))

Without a format they are the operation's own functions, and change no bit.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt import parallel
from numpygpt.numerics.formats import Format, rounded
from numpygpt.shapes import Array


class Saved(NamedTuple):
    """What an operation that ran in a format saved."""

    saved: Any
    format_: Format


def forward(operation: Any, format_: Format | None, *operands: Any, **options: Any) -> tuple[Any, Any]:
    """`operation.forward(*operands, **options)` in a format; None: as it is.

    operation   a module with the contract of an operation: `numpygpt.ops.linear`, for example
    operands    those that are arrays of floating-point numbers are rounded
    """
    if format_ is None:
        y, saved = operation.forward(*operands, **options)
        return y, saved
    y, saved = operation.forward(*(_in_format(operand, format_) for operand in operands), **options)
    return _in_format(y, format_), Saved(saved, format_)


def backward(operation: Any, d_y: Any, saved: Any, **options: Any) -> Any:
    """The operation's Gradients, in the format in which its `forward` here ran.

    saved   what `forward` returned
    """
    if not isinstance(saved, Saved):
        return operation.backward(d_y, saved, **options)
    gradients = operation.backward(_in_format(d_y, saved.format_), saved.saved, **options)
    return gradients._make(_in_format(gradient, saved.format_) for gradient in gradients)


def own(saved: Any) -> Any:
    """What the operation itself saved, whether or not it ran in a format."""
    return saved.saved if isinstance(saved, Saved) else saved


def product(a: Array, b: Array, format_: Format | None = None) -> Array:
    """a @ b as `numpygpt.parallel.product` computes it: in a format, added up in float32 and rounded once."""
    if format_ is None:
        return parallel.product(a, b)
    return rounded(parallel.product(rounded(a, format_), rounded(b, format_)), format_)


def _in_format(value: Any, format_: Format) -> Any:
    """The array, or the number of NumPy, rounded. What has no floating-point numbers, as a mask or None, stays."""
    if isinstance(value, np.ndarray | np.generic) and np.issubdtype(value.dtype, np.floating):
        return rounded(np.asarray(value), format_)[()]
    return value
