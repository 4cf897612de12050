"""The properties that must hold for number formats and quantization, in the manner of `properties`."""

import math
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from unittest.mock import patch

import ml_dtypes
import numpy as np
import torch

from numpygpt.checks.compare import FLOAT64_NORMWISE
from numpygpt.checks.derivatives import STEP, THRESHOLD
from numpygpt.numerics import absmax as absmax_module
from numpygpt.numerics import codebook, dynamic, fp4, nf4
from numpygpt.numerics.formats import BF16, FORMATS, FP8_E4M3FN, FP8_E5M2, FP16, TF32, decode, encode, rounded
from numpygpt.numerics.schemes import SCHEMES, dequantize, quantize, rows
from numpygpt.ops import quantized_linear
from numpygpt.tree import named

#: Each format as ml_dtypes and PyTorch have it. tf32 is in neither.
THEIRS = {
    BF16: (ml_dtypes.bfloat16, torch.bfloat16),
    FP16: (np.float16, torch.float16),
    FP8_E5M2: (ml_dtypes.float8_e5m2, torch.float8_e5m2),
    FP8_E4M3FN: (ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn),
}


def same_numbers(ours, theirs):
    """Whether float32 arrays have the same bits, where a NaN is as good as another."""
    same = ours.view(np.uint32) == theirs.view(np.uint32)
    return bool((same | (np.isnan(ours) & np.isnan(theirs))).all())


def all_patterns(format_):
    return np.arange(2**format_.bits, dtype=np.uint32).astype(format_.patterns)


@cache
def beside_boundaries(format_):
    """The numbers of a format, the middles of neighbors, and the four float32 numbers beside each of these."""
    numbers = decode(all_patterns(format_)[: 2 ** (format_.bits - 1)], format_)
    numbers = numbers[np.isfinite(numbers)]
    with np.errstate(over="ignore"):
        beyond = np.array([1, 1 + format_.epsilon / 4, 1 + format_.epsilon / 2, 1 + format_.epsilon, 2])
        numbers = np.concatenate([numbers, (format_.largest * beyond).astype(np.float32)])
        middles = ((numbers[1:].astype(np.float64) + numbers[:-1]) / 2).astype(np.float32)
    bits = np.concatenate([numbers, middles]).view(np.int32)[:, np.newaxis] + np.arange(-2, 3, dtype=np.int32)
    values = np.maximum(bits, 0).ravel().view(np.float32)
    return np.concatenate([values, -values, np.array([np.inf, -np.inf, np.nan], np.float32)])


def in_ml_dtypes(x, format_):
    with np.errstate(all="ignore"):
        return x.astype(THEIRS[format_][0]).astype(np.float32)


def tf32_by_bits(x):
    """Half of the last place is added to the pattern of a float32, and what is below the last place is cleared."""
    bits = x.view(np.uint32)
    return np.where(np.isfinite(x), (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits).view(np.float32)


def rounding() -> None:
    for format_ in THEIRS:
        x = beside_boundaries(format_)
        assert same_numbers(rounded(x, format_), in_ml_dtypes(x, format_)), format_.name
    doubles = beside_boundaries(FP16).astype(np.float64)
    doubles = np.concatenate([doubles, np.nextafter(doubles, 0), np.nextafter(doubles, np.inf)])
    with np.errstate(over="ignore"):  # NumPy rounds a float64 to float16 at once
        assert np.array_equal(rounded(doubles, FP16), doubles.astype(np.float16), equal_nan=True)
    x = beside_boundaries(TF32)[::7]
    assert same_numbers(rounded(x, TF32), tf32_by_bits(x))


def patterns() -> None:
    for format_, (dtype, _) in THEIRS.items():
        every = all_patterns(format_)
        values = decode(every, format_)
        assert same_numbers(values, every.view(dtype).astype(np.float32)), format_.name
        assert same_numbers(rounded(values, format_), values), format_.name
        numbers = ~np.isnan(values)
        assert np.array_equal(encode(values, format_)[numbers], every[numbers]), format_.name
        assert np.isnan(decode(encode(values[~numbers], format_), format_)).all(), format_.name
        quiet = np.array([np.nan, -np.nan], np.float32)
        assert np.array_equal(encode(quiet, format_), quiet.astype(dtype).view(every.dtype)), format_.name


def nearest_number() -> None:
    """Each value is rounded to the number of the format that is nearest in exact arithmetic, from float64 too."""
    rng = np.random.default_rng(31)
    for format_ in FORMATS.values():
        numbers = decode(all_patterns(format_)[: 2 ** (format_.bits - 1)], format_)
        numbers = numbers[np.isfinite(numbers)].astype(np.float64)
        places = rng.integers(0, len(numbers) - 1, 40)
        middles = (numbers[places] + numbers[places + 1]) / 2
        tiny = numbers[1] * np.array([0.25, 0.5, 0.75])
        x = np.concatenate([middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf), tiny, -tiny])
        for value, ours in zip(x, rounded(x, format_), strict=True):
            assert ours == exactly_rounded(value, numbers, format_), (format_.name, value)
            assert np.signbit(ours) == np.signbit(value)


def exactly_rounded(value, numbers, format_):
    below = int(np.searchsorted(numbers, abs(value), side="right")) - 1
    if below == len(numbers) - 1:
        return math.copysign(numbers[below], value)
    to_below = Fraction(abs(value)) - Fraction(numbers[below])
    to_above = Fraction(numbers[below + 1]) - Fraction(abs(value))
    up = to_above < to_below or (to_above == to_below and (format_.ties_away or below % 2 == 1))
    return math.copysign(numbers[below + up], value)


def overflow() -> None:
    beyond = {
        format_: np.array([1.0, 1.5, 8.0], np.float64) * format_.largest * (1 + format_.epsilon)
        for format_ in FORMATS.values()
    }
    for format_, x in beyond.items():
        assert rounded(np.array([-format_.largest]), format_) == -format_.largest, format_.name
        too_large = np.isinf(rounded(x, format_)) if format_.infinite else np.isnan(rounded(x, format_))
        assert too_large.all(), format_.name
        infinite = rounded(np.array([np.inf, -np.inf]), format_)
        assert (np.isinf(infinite) if format_.infinite else np.isnan(infinite)).all(), format_.name
        saturated = rounded(np.append(x, [-np.inf, np.inf]), format_, saturate=True)
        assert (np.abs(saturated) == format_.largest).all(), format_.name
        nans = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
        assert np.isnan(rounded(nans, format_)).all(), format_.name
        assert np.isnan(decode(encode(nans, format_), format_)).all(), format_.name


# Quantization


@cache
def weights():
    """Arrays to quantize: whole blocks, a tail of odd length, a block of zeros, an outlier, one negative value."""
    rng = np.random.default_rng(32)
    plain = rng.standard_normal((6, 64)).astype(np.float32)
    plain[2] = 0
    plain[4] -= 3
    odd = rng.standard_normal((7, 19)).astype(np.float32)
    odd[3, 5] = -80.0
    tiny = rng.standard_normal((6, 64)).astype(np.float32)
    tiny *= np.array([1e-35, 1e-37, 1e-40, 3e-44, 0, 1e-45], np.float32)[:, np.newaxis]
    return {
        "whole blocks": plain,
        "a tail": odd,
        "one value": np.array([-3.0], np.float32),
        "beside middles": beside_middles(),
        "tiny": tiny,
    }


def beside_middles():
    """Values whose quotient by their block's largest is as near as can be to the middle of two levels, or is it.

    There are 64 blocks of 32, one of exact ties, and a tail. Where there is such a value, 1 / largest and a division
    make different codes of it.
    """
    rng = np.random.default_rng(35)
    levels = [np.sort(nf4.LEVELS), np.sort(fp4.LEVELS)]
    middles = np.concatenate([(by_size[:-1] + by_size[1:]) / np.float32(2) for by_size in levels])
    largest = np.append(rng.uniform(0.1, 0.9, 64), 1).astype(np.float32)[:, np.newaxis]
    blocks = np.concatenate([told_apart(middles, largest), largest, largest], axis=1)
    tails = np.linspace(1.1, 9, 50, dtype=np.float32)[:, np.newaxis]
    apart = told_apart(middles, tails)
    tail = np.argmax(((apart * (1 / tails) > middles) != (apart / tails > middles))[:, :15].sum(axis=1))
    return np.concatenate([blocks.ravel(), apart[tail, :15], tails[tail]])


def told_apart(middles, largest):
    """Of the products and their neighbors, one that is on two sides of its middle by 1 / largest and by division."""
    product = middles * largest
    near = np.array([product, np.nextafter(product, np.float32(-9)), np.nextafter(product, np.float32(9))])
    apart = (near * (1 / largest) > middles) != (near / largest > middles)
    return np.take_along_axis(near, np.argmax(apart, axis=0)[np.newaxis], axis=0)[0]


def quantized_arrays():
    """{(what, scheme, block size): (the array, it quantized)}."""
    options = [*((scheme, None, False) for scheme in SCHEMES), ("nf4", 3, True), ("fp4", 32, True), ("nf4", 1, True)]
    options += [("int8", "tensor", False), ("int4", 5, False), ("zero_point4", 7, False)]
    for what, x in weights().items():
        for scheme, block_size, double in options:
            more = {"double": True} if double else {}
            yield (what, scheme, block_size), x, quantize(x, scheme, block_size, **more)


def bitsandbytes_codes() -> None:
    """Codes and constants are bitsandbytes', bit for bit; those of double quantization, given the same mean."""
    from bitsandbytes import functional

    for x in weights().values():
        tensor = torch.from_numpy(x)
        for scheme in ("nf4", "fp4"):
            for block_size in (32, 64):
                codes, state = functional.quantize_4bit(tensor, blocksize=block_size, quant_type=scheme)
                ours = quantize(x, scheme, block_size)
                assert np.array_equal(ours.codes, codes.numpy().ravel()), scheme
                assert np.array_equal(ours.absmax, state.absmax.numpy()), scheme
                if x.shape[-1] % 2 == 0:  # for odd rows it would compile code for seconds
                    theirs = functional.dequantize_4bit(codes, state).numpy()
                    assert np.array_equal(dequantize(ours).ravel(), theirs.ravel()), scheme
        codes, absmax, _ = functional.int8_vectorwise_quant(tensor.reshape(-1, x.shape[-1]))
        sound = absmax.numpy() > absmax_module.SMALLEST  # below it, theirs come from infinity or NaN
        ours = quantize(x, "int8")
        assert np.array_equal(ours.absmax, absmax.numpy())
        assert np.array_equal(ours.codes.reshape(codes.shape)[sound], codes.numpy()[sound])


def pytorch_codes() -> None:
    """Zero-point's codes are PyTorch's for the same constants, and its constants are those of the formula."""
    for x in weights().values():
        for bits, block in ((8, x.shape[-1]), (4, 7)):
            ours = quantize(x, f"zero_point{bits}", block)
            step, zero = (np.repeat(a, block)[: x.size].astype(np.float64) for a in (ours.steps, ours.zeros))
            expected = [
                torch.fake_quantize_per_tensor_affine(value.reshape(1), float(s), int(z), 0, 2**bits - 1).item()
                for value, s, z in zip(torch.from_numpy(x).ravel(), step, zero, strict=True)
            ]
            assert np.array_equal(dequantize(ours).ravel(), np.array(expected, np.float32))
            padded = np.zeros(len(ours.steps) * block, np.float32)
            padded[: x.size] = x.ravel()
            low, high = padded.reshape(-1, block).min(1).clip(max=0), padded.reshape(-1, block).max(1).clip(min=0)
            steps = np.maximum((high.astype(np.float64) - low) / (2**bits - 1), np.finfo(np.float32).eps)
            assert (np.abs(ours.zeros + low / steps) <= 0.5 + 2**bits * np.finfo(np.float32).eps).all()
            assert agree(ours.steps.astype(np.float64), steps, single=True)


def errors_bounded() -> None:
    """No value is off by more than the scheme allows, and zero stays zero where the scheme says so."""
    for (what, scheme, _), x, quantized in quantized_arrays():
        error = np.abs(dequantize(quantized, np.float64).ravel() - x.ravel().astype(np.float64))
        allowed = largest_errors(quantized, x.size)
        assert (error <= allowed).all(), (what, scheme, (error / allowed).max())
        if not scheme.startswith("quantile"):
            assert not dequantize(quantized).ravel()[x.ravel() == 0].any(), (what, scheme)


def largest_errors(quantized, size):
    """How far each value may be off: half of a step; half of the widest gap of levels; float32's roundings.

    The last term is for a step that is off by half of the smallest number of float32, as often as a code is large.
    """
    roundings = 8 * np.finfo(np.float32).eps
    if hasattr(quantized, "steps"):
        return np.repeat(quantized.steps.astype(np.float64) * (0.5 + roundings * 256), quantized.block_size)[:size]
    if isinstance(quantized, codebook.Codebook):
        absmax = codebook.constants(quantized, 0, -(-size // quantized.block_size)).astype(np.float64)
        levels = np.sort(quantized.levels.astype(np.float64))
        ends = max(1 - levels[-1], 1 + levels[0])
        share = max(np.diff(levels).max() / 2, ends) + roundings
        if not isinstance(quantized.absmax, np.ndarray):  # the constants are off, too
            rest = quantized.absmax.rest
            off = np.repeat(rest.absmax.astype(np.float64), rest.block_size)[: len(absmax)] / 50
            absmax, share = np.abs(absmax) + off / share, share
        share = np.where(absmax < codebook.SMALLEST, 1, share)  # bitsandbytes' blocks as small as this have few codes
    else:
        absmax, share = quantized.absmax.astype(np.float64), 0.5 / (2 ** (quantized.bits - 1) - 1) + roundings
    smallest = float(np.finfo(np.float32).smallest_subnormal)
    return np.repeat(absmax * share, quantized.block_size)[:size] + 64 * smallest


def blocks_alone() -> None:
    """A block has the codes that it would have alone, and any rows are those of the whole."""
    for (what, scheme, block_size), x, quantized in quantized_arrays():
        whole = dequantize(quantized)
        if x.ndim == 2:
            for first, last in ((0, 1), (1, 4), (2, len(x))):
                assert np.array_equal(rows(quantized, first, last), whole[first:last]), (what, scheme, block_size)
        plain = isinstance(getattr(quantized, "absmax", None), np.ndarray) and not scheme.startswith("quantile")
        if plain:
            size, flat = quantized.block_size, x.ravel()
            for start in range(0, flat.size - flat.size % size, size):
                alone = dequantize(quantize(flat[start : start + size], scheme, size))
                assert np.array_equal(alone, whole.ravel()[start : start + size]), (what, scheme, block_size)
            if flat.size % size:
                start = flat.size - flat.size % size
                alone = dequantize(quantize(flat[start:], scheme, size))
                assert np.array_equal(alone, whole.ravel()[start:]), (what, scheme, block_size)


def double_codes() -> None:
    """The codes and constants of double quantization are those of bitsandbytes' reference, for the same mean."""
    from bitsandbytes import functional

    reference = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    for x in weights().values():
        plain, ours = quantize(x, "nf4", 3), quantize(x, "nf4", 3, double=True)
        rest = torch.from_numpy(plain.absmax - ours.absmax.mean)
        codes, absmax = torch.ops.bitsandbytes.quantize_blockwise.default.redispatch(
            reference, rest, functional.create_dynamic_map(), 256
        )
        assert agree(ours.absmax.mean, plain.absmax.mean(dtype=np.float64, keepdims=True), single=True)
        assert np.array_equal(ours.absmax.rest.codes, codes.numpy())
        assert np.array_equal(ours.absmax.rest.absmax, absmax.numpy())
        theirs = functional.dequantize_blockwise(codes, absmax=absmax, blocksize=256).numpy() + ours.absmax.mean
        assert np.array_equal(codebook.constants(ours, 0, len(theirs)), theirs)
        assert np.array_equal(ours.codes, plain.codes), "the codes are those of the exact constants"


def nearest_level() -> None:
    """The code is that of the nearest level, found by comparing distances in float64, and of the lower of two."""
    rng = np.random.default_rng(37)
    for levels in (nf4.LEVELS, fp4.LEVELS, dynamic.LEVELS):
        by_size = np.sort(levels)
        middles = (by_size[:-1] + by_size[1:]) / np.float32(2)
        codes = codebook.nearest(middles, levels)
        exact = middles.astype(np.float64) * 2 == by_size[:-1].astype(np.float64) + by_size[1:]
        assert np.array_equal(levels[codes][exact], by_size[:-1][exact])
        fractions = rng.uniform(-1, 1, 500).astype(np.float32)
        distances = np.abs(fractions[:, np.newaxis].astype(np.float64) - levels)
        off = distances[np.arange(500), codebook.nearest(fractions, levels)] - distances.min(axis=1)
        assert off.max() <= 2 * np.finfo(np.float32).eps


def codes_by_hand() -> None:
    """Small arrays whose codes and values can be written down."""
    x = np.array([-1, -0.5, 0, 0.25, 1], np.float32)
    ours = quantize(x, "int8")
    assert ours.codes.tolist() == [-127, -64, 0, 32, 127]  # -63.5 is a tie, and 31.75 is not
    assert np.array_equal(dequantize(ours, np.float64), ours.codes / 127)
    four = quantize(7 * x, "int4", "tensor")
    assert four.codes.tolist() == [0x14, 0x8A, 0xF8]  # -7, -3.5, 0, 1.75, 7 and zero: -7, -4, 0, 2, 7, each + 8
    assert np.array_equal(dequantize(four), np.array([-7, -4, 0, 2, 7], np.float32))
    ours = quantize(np.float32(127.5) * x, "zero_point8")
    assert ours.steps.tolist() == [1]
    assert ours.zeros.tolist() == [128]  # 127.5 is a tie
    assert ours.codes.tolist() == [0, 64, 128, 160, 255]  # -127.5, -63.75, 0, 31.875, 127.5: the first is a tie
    assert dequantize(ours).tolist() == [-128, -64, 0, 32, 127]
    positive = quantize(np.array([2, 3, 5], np.float32), "zero_point4")
    assert (positive.zeros.tolist(), positive.codes.tolist()) == ([0], [0x69, 0xF0])
    negative = quantize(np.array([-2, -3, -5], np.float32), "zero_point4")
    assert (negative.zeros.tolist(), negative.codes.tolist()) == ([15], [0x96, 0x0F])
    equal = quantize(np.arange(17, dtype=np.float32), "quantile4", "tensor")
    assert equal.levels.tolist() == [(2 * i + 1) / 32 for i in range(16)]
    codes = quantize(np.array([1, -1, 0], np.float32), "nf4").codes
    assert codes.tolist() == [0xF0, 0x77]


def equally_frequent() -> None:
    """Each level is in the middle of a share of the sorted values, and each code is used about as often as another."""
    x = np.random.default_rng(33).standard_normal(4097).astype(np.float32)
    quantized = quantize(x, "quantile8", "tensor")
    ends = np.sort(x / np.abs(x).max())[::16].astype(np.float64)
    assert agree(quantized.levels.astype(np.float64), ((ends[1:] + ends[:-1]) / 2).astype(np.float32), single=True)
    counts = np.bincount(quantized.codes, minlength=256)
    assert 8 <= counts.min() <= counts.max() <= 32


def packed_product() -> None:
    """The product with packed weights is that with the whole weight, and so is its gradient."""
    rng = np.random.default_rng(34)
    for (what, scheme, block_size), x, quantized in quantized_arrays():
        width = x.shape[-1] if x.ndim > 1 else min(16, x.size)
        weight = quantized._replace(shape=(x.size // width, width))
        whole = dequantize(weight, np.float64)
        for count in (1, 40):
            inputs = rng.standard_normal((count, width))
            d_y, bias = rng.standard_normal((count, len(whole))), rng.standard_normal(len(whole))
            y, saved = quantized_linear.forward(inputs, weight, bias)
            d_x, d_weight, d_bias = quantized_linear.backward(d_y, saved)
            assert d_weight is None
            for ours, expected in ((y, inputs @ whole.T + bias), (d_x, d_y @ whole), (d_bias, d_y.sum(axis=0))):
                assert agree(ours, expected), (what, scheme, block_size, count)


@contextmanager
def small_blocks():
    """Within it, a block of rows has two rows of 19 values, so that a weight has several blocks, and a shorter last."""
    with patch.object(quantized_linear, "AT_ONCE", 40), patch.object(quantized_linear, "IN_CACHE", 40):
        yield


def packed_in_blocks() -> None:
    with small_blocks():
        packed_product()


def packed_rows_alone() -> None:
    """Each output is the product with its row alone."""
    rng = np.random.default_rng(38)
    weights_ = {"int8": rng.standard_normal((7, 19)), "nf4": rng.standard_normal((7, 64))}
    with small_blocks():
        for (scheme, weight), count in ((one, count) for one in weights_.items() for count in (1, 40)):
            x = rng.standard_normal((count, weight.shape[1]))
            y, _ = quantized_linear.forward(x, quantize(weight, scheme))
            for row in range(7):
                alone, _ = quantized_linear.forward(x, quantize(weight[row : row + 1], scheme))
                assert agree(y[:, row : row + 1], alone), row


def packed_complex_step() -> None:
    rng = np.random.default_rng(36)
    weights_ = {scheme: quantize(rng.standard_normal((5, 12)), scheme) for scheme in ("int8", "zero_point8", "nf4")}
    for scheme, weight in weights_.items():
        x, bias, d_y = (rng.standard_normal(shape) for shape in ((3, 12), (5,), (3, 5)))
        _, saved = quantized_linear.forward(x, weight, bias)
        d_x, _, d_bias = quantized_linear.backward(d_y, saved)
        for _ in range(3):
            along_x, along_bias = rng.standard_normal(x.shape), rng.standard_normal(bias.shape)
            stepped = x + 1j * STEP * along_x, weight, bias + 1j * STEP * along_bias
            expected = (d_y * quantized_linear.forward(*stepped)[0]).sum().imag / STEP
            terms = (along_x * d_x).sum(), (along_bias * d_bias).sum()
            assert abs(sum(terms) - expected) <= THRESHOLD * np.hypot(*terms), scheme


def agree(ours, expected, *, single=False):
    """Whether two arrays are the same except for the roundings of float64, or of float32."""
    units = 2.0**29 if single else 1.0
    difference = np.linalg.norm((ours - expected).astype(np.float64))
    return ours.shape == expected.shape and difference <= FLOAT64_NORMWISE * units * np.linalg.norm(expected)


# What a run through everything tells


def tell(watch) -> None:
    """Tell the patterns of rounded numbers, then codes, constants and values of quantized arrays, and a product."""
    for name, format_ in FORMATS.items():
        every = all_patterns(format_)[::13 if format_ is TF32 else 1]
        watch(f"{name}.decoded", _bits(decode(every, format_)))
        near = _NEAR[format_]
        watch(f"{name}.rounded", _bits(rounded(near, format_)))
        with np.errstate(invalid="ignore"):  # among them are signaling NaN
            nearer_to_zero = np.nextafter(near.astype(np.float64), 0)
        watch(f"{name}.of_float64", _bits(rounded(nearer_to_zero, format_).astype(np.float32)))
        watch(f"{name}.encoded", encode(near, format_).astype(np.int64))
    for (what, scheme, block_size), x, quantized in quantized_arrays():
        name = f"{what}.{scheme}.{block_size}".replace(" ", "_")
        for leaf, array in named(quantized):
            watch(f"{name}.{leaf}", array.astype(np.float64))
        watch(f"{name}.values", dequantize(quantized))
        width = x.shape[-1] if x.ndim > 1 else min(16, x.size)
        weight = quantized._replace(shape=(x.size // width, width))
        with small_blocks():
            y, saved = quantized_linear.forward(np.ones((2, width)), weight, np.ones(weight.shape[0]))
            d_x, _, d_bias = quantized_linear.backward(y, saved)
        watch(f"{name}.y", y)
        watch(f"{name}.d_x", d_x)
        watch(f"{name}.d_bias", d_bias)


def _bits(x):
    """The patterns of float32 numbers, the same for every NaN."""
    return np.where(np.isnan(x), np.float32(np.nan), x).view(np.uint32).astype(np.int64)


#: Made before any bug is planted.
_NEAR = {format_: beside_boundaries(format_)[::7 if format_ is TF32 else 1] for format_ in FORMATS.values()}


PROPERTIES = {
    "rounding": rounding,
    "patterns": patterns,
    "nearest_number": nearest_number,
    "overflow": overflow,
    "bitsandbytes_codes": bitsandbytes_codes,
    "pytorch_codes": pytorch_codes,
    "errors_bounded": errors_bounded,
    "double_codes": double_codes,
    "nearest_level": nearest_level,
    "codes_by_hand": codes_by_hand,
    "blocks_alone": blocks_alone,
    "equally_frequent": equally_frequent,
    "packed_product": packed_product,
    "packed_in_blocks": packed_in_blocks,
    "packed_rows_alone": packed_rows_alone,
    "packed_complex_step": packed_complex_step,
}
