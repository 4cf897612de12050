"""The schemes of quantization by name, and what is done with a quantized array whatever its scheme.

    quantized = quantize(weight, "nf4", double=True)    codes, constants, shape: a NamedTuple
    dequantize(quantized)                               the array of its values, float32
    rows(quantized, 0, 128)                             the first 128 rows of a matrix, without the others
    quantized.bytes()                                   the bytes of all it holds

Of a quantized array, codes and constants are the leaves of a tree node (`numpygpt.tree`): they can be saved by name.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.numerics import absmax, codebook, dynamic, fp4, nf4, quantile, zero_point
from numpygpt.shapes import Array

Quantized = absmax.Absmax | zero_point.ZeroPoint | codebook.Codebook


class Scheme(NamedTuple):
    """A way to quantize.

    quantize     quantize(x, block_size, **options)
    block_size   the usual size of a block: a number of values, or "row"
    options      what it takes besides
    """

    quantize: Callable[..., Quantized]
    block_size: int | str
    options: tuple[str, ...] = ()


def _by(levels: Array) -> Callable[..., Quantized]:
    return lambda x, block_size, **options: codebook.quantize(x, levels, block_size, **options)


#: The schemes by name. A number at the end is that of the bits.
SCHEMES: dict[str, Scheme] = {
    "int8": Scheme(lambda x, block_size: absmax.quantize(x, 8, block_size), "row"),
    "int4": Scheme(lambda x, block_size: absmax.quantize(x, 4, block_size), 64),
    "zero_point8": Scheme(lambda x, block_size: zero_point.quantize(x, 8, block_size), "row"),
    "zero_point4": Scheme(lambda x, block_size: zero_point.quantize(x, 4, block_size), 64),
    "dynamic8": Scheme(_by(dynamic.LEVELS), 256, ("double",)),
    "quantile8": Scheme(lambda x, size, **options: quantile.quantize(x, 8, size, **options), 256, ("double",)),
    "quantile4": Scheme(lambda x, size, **options: quantile.quantize(x, 4, size, **options), 64, ("double",)),
    "fp4": Scheme(_by(fp4.LEVELS), 64, ("double",)),
    "nf4": Scheme(_by(nf4.LEVELS), 64, ("double",)),
}


def quantize(x: Any, scheme: str, block_size: int | str | None = None, **options: bool) -> Quantized:
    """An array of float32 or float64 with fewer bits. float64 is rounded to float32 first.

    scheme       a name in SCHEMES
    block_size   how many values have a constant of their own; "row" or "tensor" for all of a row, or of the array.
                 None: the scheme's usual number
    options      double=True quantizes the constants, too, in schemes of levels

    Raises InputError for an unknown scheme or option, a block size below 1, and an array that is empty, quantized, of
    another dtype, or not finite.
    """
    if scheme not in SCHEMES:
        raise InputError(f"the scheme of quantization is {scheme!r}; expected one of {', '.join(SCHEMES)}")
    method = SCHEMES[scheme]
    unknown = set(options) - set(method.options)
    if unknown:
        raise InputError(
            f"the scheme {scheme} has no option {', '.join(sorted(unknown))}; expected "
            f"{', '.join(method.options) or 'none'}"
        )
    return method.quantize(x, method.block_size if block_size is None else block_size, **options)


def put_values(quantized: Quantized, start: int, out: Array) -> None:
    """Put the values of the flat array from number `start` on into `out`, which is flat and contiguous.

    They are computed in its dtype: in float64 they are not rounded to float32, as those of `dequantize` are by default.
    """
    match quantized:
        case absmax.Absmax():
            absmax.put_values(quantized, start, out)
        case zero_point.ZeroPoint():
            zero_point.put_values(quantized, start, out)
        case codebook.Codebook():
            codebook.put_values(quantized, start, out)
        case _:
            raise TypeError(f"what to dequantize is a {type(quantized).__name__}; expected what `quantize` returned")


def dequantize(quantized: Quantized, dtype: Any = np.float32) -> Array:
    """The values of the whole array, in its shape."""
    out = np.empty(quantized.shape, dtype)
    put_values(quantized, 0, out.reshape(-1))
    return out


def rows(quantized: Quantized, first: int, last: int, dtype: Any = np.float32) -> Array:
    """The rows `first` to `last` of a matrix, without the others."""
    width = quantized.shape[-1]
    out = np.empty((last - first, width), dtype)
    put_values(quantized, first * width, out.reshape(-1))
    return out
