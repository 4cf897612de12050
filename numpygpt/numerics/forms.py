"""What is saved of a quantized array beside its own arrays, and how an array is made of both.

    form = form_of(quantized)      scheme, shape, block size, whether the constants are quantized: texts and numbers
    unfilled(form)                 the same quantized array without values: its arrays have dtypes and shapes alone

So a reader knows every array by name, dtype and shape before any is read, and finds out what is missing or misshaped
without memory. The names are those of the tree (`numpygpt.tree.named`):

    int8, int4                  codes  absmax
    zero_point8, zero_point4    codes  steps  zeros
    schemes of levels           codes  absmax  levels
    the same, double            codes  absmax.rest.codes  absmax.rest.absmax  absmax.rest.levels  absmax.mean  levels
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.numerics import absmax, blocks, codebook, dynamic, fp4, nf4, zero_point
from numpygpt.numerics.schemes import SCHEMES, Quantized
from numpygpt.sections import value_of
from numpygpt.shapes import Array

#: The levels that a scheme gives to every array. Those of the other schemes of levels are the array's own quantiles.
TABLES = {"nf4": nf4.LEVELS, "fp4": fp4.LEVELS, "dynamic8": dynamic.LEVELS}

#: The scheme of the constants of double quantization.
OF_CONSTANTS = "dynamic8"


class Form(NamedTuple):
    """A quantized array without its arrays.

    scheme       a name in `numpygpt.numerics.schemes.SCHEMES`
    shape        the shape of the array
    block_size   how many values a block has
    double       whether the constants are quantized, too
    """

    scheme: str
    shape: tuple[int, ...]
    block_size: int
    double: bool

    @property
    def bits(self) -> int:
        """How many bits a code has, 4 or 8: the number at the end of the scheme's name."""
        return int(self.scheme[-1])

    @property
    def size(self) -> int:
        """How many values the array has."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        return {**self._asdict(), "shape": list(self.shape)}

    @classmethod
    def of_dict(cls, saved: Mapping[str, Any]) -> "Form":
        """What `to_dict` returned. InputError for anything else, and for a scheme that does not exist."""
        scheme, shape = value_of(saved, "scheme", str), value_of(saved, "shape", list)
        block_size, double = value_of(saved, "block_size", int), value_of(saved, "double", bool)
        if scheme not in SCHEMES:
            raise InputError(f"the scheme of quantization is {scheme!r:.40}; expected one of {', '.join(SCHEMES)}")
        if not shape or not all(type(side) is int and side > 0 for side in shape):
            raise InputError(f"shape is {shape!r:.40}; expected a list of numbers from 1")
        if block_size < 1:
            raise InputError(f"block_size is {block_size}; expected a number from 1")
        if double and "double" not in SCHEMES[scheme].options:
            raise InputError(f"double is True, and the constants of {scheme} are never quantized")
        return cls(scheme, tuple(shape), block_size, double)


def form_of(quantized: Quantized) -> Form:
    """The form of a quantized array."""
    shape, size = quantized.shape, quantized.block_size
    match quantized:
        case absmax.Absmax():
            return Form(f"int{quantized.bits}", shape, size, double=False)
        case zero_point.ZeroPoint():
            return Form(f"zero_point{quantized.bits}", shape, size, double=False)
    known = [name for name, levels in TABLES.items() if np.array_equal(levels, quantized.levels)]
    scheme = known[0] if known else f"quantile{quantized.bits}"
    return Form(scheme, shape, size, double=isinstance(quantized.absmax, codebook.Constants))


def unfilled(form: Form) -> Quantized:
    """A quantized array of this form. Its arrays have no memory, and no values that mean anything."""
    constants = _nothing(np.float32, blocks.count(form.size, form.block_size))
    match form.scheme.removesuffix(str(form.bits)):
        case "int":
            codes = _codes(form.size, form.bits, np.int8)
            return absmax.Absmax(codes, constants, form.shape, form.block_size, form.bits)
        case "zero_point":
            codes, zeros = _codes(form.size, form.bits), _nothing(np.uint8, constants.size)
            return zero_point.ZeroPoint(codes, constants, zeros, form.shape, form.block_size, form.bits)
    if not form.double:
        return _of_levels(form, constants)
    nested = Form(OF_CONSTANTS, constants.shape, codebook.CONSTANTS_IN_BLOCK, double=False)
    rest = _of_levels(nested, _nothing(np.float32, blocks.count(nested.size, nested.block_size)))
    return _of_levels(form, codebook.Constants(rest, _nothing(np.float32, 1)))


def _of_levels(form: Form, constants: Any) -> codebook.Codebook:
    levels = _nothing(np.float32, 2**form.bits)
    return codebook.Codebook(_codes(form.size, form.bits), constants, levels, form.shape, form.block_size)


def _codes(size: int, bits: int, dtype_of_bytes: Any = np.uint8) -> Array:
    """The codes of so many values. Two codes of 4 bits share a byte, which is then unsigned."""
    return _nothing(dtype_of_bytes, size) if bits == 8 else _nothing(np.uint8, blocks.count(size, 2))


def _nothing(dtype: Any, size: int) -> Array:
    """An array of one axis whose elements are all one element, so that it has no memory of its own."""
    return np.broadcast_to(np.zeros((), dtype), (size,))
