"""Short number formats: bf16, fp16, fp8 and tf32, as values that are rounded to them and as bit patterns.

A format has 1 sign bit, E exponent bits and M mantissa bits. A pattern with exponent field e and mantissa field m is

    (1)  e > 0   (1 + m / 2^M) 2^(e - bias)      a normal number
         e = 0   (m / 2^M) 2^(1 - bias)          a subnormal number: below the smallest normal one, the steps stay equal

with bias = 2^(E-1) - 1. What a format does with the largest exponent field differs:

    format       E   M   largest field, all ones                       a value that is too large becomes
    bf16         8   7   infinity if m = 0, else NaN, as IEEE 754 has  infinity
    fp16         5  10   the same                                      infinity
    tf32         8  10   the same                                      infinity
    fp8_e5m2     5   2   the same                                      infinity
    fp8_e4m3fn   4   3   NaN if m = 7, else a number: there is no      NaN, as in ml_dtypes
                         infinity, and the largest number is 448

("fn": finite, with NaN.) A value is too large if it would be rounded to a number above the largest one: for fp8_e4m3fn
above 464, because the tie 464 is rounded to 448, whose last bit is 0. A saturating cast gives the largest number
instead of NaN or infinity, also for an infinity; `saturate=True` asks for it. PyTorch's cast to fp8_e4m3fn saturates,
and its cast to fp8_e5m2 does not.

Rounding. Between 2^k and 2^(k+1) a format has the numbers whose distance is the quantum q = 2^(k - M), where k is at
least the exponent of the smallest normal number. The nearest multiple of q is found by float64 itself:

    (2)  y = (x + c) - c    with c = 1.5 2^52 q

The numbers of float64 beside c have the distance q. So the addition rounds x to a multiple of q: to the nearest one,
and to the even one if two are as near. The subtraction is exact. There is one rounding, whether x is float32 or
float64.

tf32 is what a tensor core makes of a float32 that it multiplies. Its instruction, cvt.rna.tf32.f32, rounds a tie away
from zero, so tf32 does so here. No processor that runs NumPy has this instruction, and neither ml_dtypes nor PyTorch
has the format on a CPU. So here is no independent oracle: the tests compare with integer arithmetic on the bits of
float32, which is another way to say the same.

Sources: IEEE 754-2019, section 3.4; Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv:2209.05433,
table 1; NVIDIA, PTX ISA, "cvt".
"""

import math
from functools import partial
from typing import NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.parallel import over_rows
from numpygpt.shapes import Array

#: The exponent bits of a float64. A positive number with these bits alone is the power of two below it.
_EXPONENT_BITS = np.int64(0x7FF0_0000_0000_0000)


class Format(NamedTuple):
    """A binary floating-point format with a sign bit.

    infinite    whether it has infinities
    ties_away   whether a number between two neighbors, as near to one as to the other, is rounded away from zero; if
                not, it is rounded to the neighbor whose last bit is 0
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    infinite: bool = True
    ties_away: bool = False

    @property
    def bits(self) -> int:
        """How many bits a number has."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is subtracted from the exponent field."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number with all its mantissa bits."""
        return math.ldexp(1.0, 1 - self.bias)

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number."""
        return math.ldexp(self.smallest_normal, -self.mantissa_bits)

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next number."""
        return math.ldexp(1.0, -self.mantissa_bits)

    @property
    def largest(self) -> float:
        """The largest number. Without infinities, the largest exponent field has numbers, except for the last one."""
        if self.infinite:
            return math.ldexp(2.0 - self.epsilon, self.bias)
        return math.ldexp(2.0 - 2 * self.epsilon, self.bias + 1)

    @property
    def patterns(self) -> np.dtype:
        """The dtype of bit patterns. Those of tf32 have 19 bits, the last ones of 32."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16 if self.bits == 16 else np.uint32)


BF16 = Format("bf16", 8, 7)
FP16 = Format("fp16", 5, 10)
TF32 = Format("tf32", 8, 10, ties_away=True)
FP8_E5M2 = Format("fp8_e5m2", 5, 2)
FP8_E4M3FN = Format("fp8_e4m3fn", 4, 3, infinite=False)

#: The formats by name.
FORMATS = {format_.name: format_ for format_ in (BF16, FP16, TF32, FP8_E5M2, FP8_E4M3FN)}


def format_of(name: str) -> Format:
    """The format of this name. Raises InputError if there is none."""
    if name not in FORMATS:
        raise InputError(f"the number format is {name!r}; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def rounded(x: Array, format_: Format, *, saturate: bool = False) -> Array:
    """The values of x, each rounded to the nearest number of the format, in x's dtype and shape.

    x          float32 or float64, any shape; NaN stays NaN, and a zero keeps its sign
    saturate   whether a value that is too large becomes the largest number

    Raises InputError for an x of another dtype.
    """
    if x.dtype not in (np.float32, np.float64):
        raise InputError(f"the values to round to {format_.name} are {x.dtype}; expected float32 or float64")
    y = np.empty(x.shape, x.dtype)
    if x.size:
        round_block = partial(_round, format_=format_, saturate=saturate)
        over_rows(round_block, x.reshape(-1, 1), y.reshape(-1, 1))
    return y


def _round(values: Array, out: Array, format_: Format, saturate: bool) -> None:
    """Round one block of values, of either dtype, into `out`."""
    with np.errstate(invalid="ignore"):  # a signaling NaN becomes a quiet one, and infinity less infinity is NaN
        x = values.astype(np.float64)
        nearest = _nearest(x, format_)
    too_large = np.abs(nearest) > format_.largest
    if too_large.any():
        nearest[too_large] = format_.largest if saturate else np.inf if format_.infinite else np.nan
    np.copysign(nearest, x, out=out, casting="same_kind")


def _nearest(x: Array, format_: Format) -> Array:
    """The nearest numbers that the format would have if its exponents had no end. A negative zero may lose its sign."""
    quantum = (x.view(np.int64) & _EXPONENT_BITS).view(np.float64)
    beyond = math.ldexp(1.0, format_.bias + 2)  # a larger power of two is not needed, and infinity would give NaN
    np.clip(quantum, format_.smallest_normal, beyond, out=quantum)
    quantum *= format_.epsilon
    c = quantum * (1.5 * 2**52)
    nearest = x + c
    nearest -= c  # (2)
    if format_.ties_away:
        half = np.copysign(quantum / 2, x)
        nearest = np.where(x - nearest == half, x + half, nearest)
    return nearest


def encode(x: Array, format_: Format, *, saturate: bool = False) -> Array:
    """The bit patterns of the values of x, rounded to the format: uint8, uint16, or uint32 for tf32.

    The pattern of a NaN has the first mantissa bit only, which makes it a quiet one, or all of them if the format has
    no infinity. The arguments, and the errors, are those of `rounded`.
    """
    values = np.atleast_1d(rounded(x, format_, saturate=saturate).astype(np.float64))
    shift, one = format_.mantissa_bits, 1 << format_.mantissa_bits
    magnitude = np.abs(values)
    fields = (magnitude.view(np.int64) >> (52 - shift)) - ((1023 - format_.bias) << shift)  # e, m of a normal number
    subnormal = magnitude < format_.smallest_normal
    fields[subnormal] = magnitude[subnormal] / format_.smallest_subnormal
    largest_field = ((1 << format_.exponent_bits) - 1) << shift
    fields[np.isinf(values)] = largest_field
    fields[np.isnan(values)] = largest_field + (one // 2 if format_.infinite else one - 1)
    patterns = fields | (np.signbit(values).astype(np.int64) << (format_.bits - 1))
    return patterns.astype(format_.patterns).reshape(np.shape(x))


def decode(patterns: Array, format_: Format) -> Array:
    """The numbers of these bit patterns, float32, which has every number of each format.

    patterns   integers below 2^bits, any shape

    Raises InputError for patterns that are no integers, or out of range.
    """
    if not np.issubdtype(patterns.dtype, np.integer):
        raise InputError(f"the patterns of {format_.name} are {patterns.dtype}; expected integers")
    if patterns.size and not 0 <= int(patterns.min()) <= int(patterns.max()) < 2**format_.bits:
        raise InputError(
            f"the patterns of {format_.name} go from {patterns.min()} to {patterns.max()}; expected "
            f"{format_.bits} bits: 0 to {2**format_.bits - 1}"
        )
    shift, one = format_.mantissa_bits, 1 << format_.mantissa_bits
    pattern = np.atleast_1d(patterns.astype(np.int64))
    e, m = (pattern >> shift) & ((1 << format_.exponent_bits) - 1), pattern & (one - 1)
    significand = np.where(e > 0, one + m, m)
    values = np.ldexp(significand.astype(np.float64), np.maximum(e, 1) - format_.bias - shift)  # (1)
    last = e == (1 << format_.exponent_bits) - 1
    if format_.infinite:
        values[last & (m == 0)] = np.inf
        values[last & (m > 0)] = np.nan
    else:
        values[last & (m == one - 1)] = np.nan
    sign = np.where(pattern >> (format_.bits - 1), -1.0, 1.0)
    return np.copysign(values, sign).astype(np.float32).reshape(patterns.shape)
