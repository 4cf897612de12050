"""Short number formats: every pattern, random numbers of all sizes, float64, bad input, and what the document says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from numpygpt.errors import InputError
from numpygpt.numerics.formats import FORMATS, FP8_E4M3FN, TF32, decode, encode, format_of, rounded
from parity_tests.numeric_properties import (
    THEIRS,
    all_patterns,
    beside_boundaries,
    in_ml_dtypes,
    same_numbers,
    tf32_by_bits,
)

each_format = pytest.mark.parametrize("format_", THEIRS, ids=lambda format_: format_.name)
every_format = pytest.mark.parametrize("format_", FORMATS.values(), ids=list(FORMATS))
DOCUMENT = Path(__file__).parents[1] / "docs" / "number-formats.md"


def any_bits(count, seed):
    """Numbers whose 32 bits are random: of all sizes alike, infinities and NaN among them."""
    return np.random.default_rng(seed).integers(0, 2**32, count, np.uint32).view(np.float32)


def in_torch(x, format_):
    return torch.from_numpy(x).to(THEIRS[format_][1]).float().numpy()


def assert_rounded_as_theirs(x, format_):
    """PyTorch saturates where a number is too large for fp8_e4m3fn. Everywhere else, it does as ml_dtypes does."""
    assert same_numbers(rounded(x, format_), in_ml_dtypes(x, format_))
    assert same_numbers(rounded(x, format_, saturate=format_ is FP8_E4M3FN), in_torch(x, format_))


@each_format
def test_a_million_numbers_of_random_bits_are_rounded_as_ml_dtypes_and_pytorch_do(format_):
    assert_rounded_as_theirs(any_bits(2**20, 0), format_)


@each_format
def test_numbers_beside_every_boundary_are_rounded_as_ml_dtypes_and_pytorch_do(format_):
    assert_rounded_as_theirs(beside_boundaries(format_), format_)


@pytest.mark.long_form
@each_format
def test_ten_million_numbers_of_random_bits_are_rounded_as_ml_dtypes_and_pytorch_do(format_):
    for seed in range(10):
        assert_rounded_as_theirs(any_bits(10**6, seed), format_)


def test_a_million_numbers_of_random_bits_are_rounded_to_tf32_as_by_bits():
    assert same_numbers(rounded(any_bits(2**20, 1), TF32), tf32_by_bits(any_bits(2**20, 1)))


@each_format
def test_every_pattern_is_decoded_as_pytorch_decodes_it(format_):
    every = all_patterns(format_)
    signed = every.view(np.int8 if format_.bits == 8 else np.int16)
    theirs = torch.from_numpy(signed.copy()).view(THEIRS[format_][1]).float().numpy()
    assert same_numbers(decode(every, format_), theirs)


@every_format
def test_every_pattern_survives_and_patterns_are_in_the_order_of_their_numbers(format_):
    values = decode(all_patterns(format_), format_)
    kept = ~np.isnan(values)
    assert np.array_equal(encode(values, format_)[kept], all_patterns(format_)[kept])
    positive = values[: 2 ** (format_.bits - 1)]
    assert (np.diff(positive[np.isfinite(positive)]) > 0).all()
    assert positive[np.isfinite(positive)][-1] == format_.largest
    assert positive[1] == np.float32(format_.smallest_subnormal)
    assert positive[2**format_.mantissa_bits] == np.float32(format_.smallest_normal)
    one = int(np.flatnonzero(positive == 1)[0])
    assert positive[one + 1] - positive[one] == format_.epsilon


@every_format
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shape_dtype_and_what_is_given_stay(format_, dtype):
    x = np.random.default_rng(2).standard_normal((3, 4, 5)).astype(dtype)
    before = x.copy()
    for part in (x, x[:, ::2], x.swapaxes(0, 2), x[:1, 0, 0].reshape(()), x[:0]):
        y = rounded(part, format_)
        assert (y.shape, y.dtype) == (part.shape, dtype)
        assert np.array_equal(rounded(y, format_), y)
        assert np.array_equal(y, rounded(np.ascontiguousarray(part), format_).reshape(part.shape))
    assert np.array_equal(x, before)


@pytest.mark.parametrize("x", [np.arange(3), np.ones(2, np.complex128), np.ones(2, np.float16)], ids=str)
def test_what_is_no_float32_or_float64_is_refused(x):
    with pytest.raises(InputError, match=rf"the values to round to fp16 are {x.dtype}; expected float32 or float64"):
        rounded(x, FORMATS["fp16"])


def test_other_names_and_patterns_are_refused():
    with pytest.raises(InputError, match="the number format is 'fp8'; expected one of bf16, fp16, tf32"):
        format_of("fp8")
    with pytest.raises(InputError, match=r"the patterns of fp16 are float32; expected integers"):
        decode(np.ones(2, np.float32), FORMATS["fp16"])
    with pytest.raises(InputError, match="go from 3 to 256; expected 8 bits: 0 to 255"):
        decode(np.array([3, 256]), FP8_E4M3FN)


def row(format_):
    """A line of the document's table."""
    beyond = "infinity" if format_.infinite else "NaN"
    cells = (
        f"`{format_.name}`", 1, format_.exponent_bits, format_.mantissa_bits, f"{format_.largest:.6g}",
        f"{format_.smallest_normal:.3g}", f"{format_.smallest_subnormal:.3g}", f"{format_.epsilon:.3g}", beyond,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


@every_format
def test_the_table_of_the_document_is_true(format_):
    assert row(format_) in DOCUMENT.read_text(encoding="utf-8")
