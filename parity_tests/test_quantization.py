"""Quantization beside bitsandbytes and PyTorch, its derived errors, bad input, and what the document says."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from numpygpt.errors import InputError
from numpygpt.numerics import absmax, blocks, codebook, dynamic, fp4, nf4
from numpygpt.numerics.schemes import SCHEMES, dequantize, quantize, rows
from numpygpt.ops import quantized_linear
from numpygpt.tree import mapped, named
from parity_tests.numeric_properties import agree

DOCUMENT = Path(__file__).parents[1] / "docs" / "number-formats.md"
#: bitsandbytes' operations without what it runs on a CPU in their place.
REFERENCE = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def bitsandbytes():
    from bitsandbytes import functional

    return functional


# Levels


def test_nf4s_levels_are_quantiles_of_the_normal_distribution():
    """By the formula of the docstring, which is QLoRA's, with the offset that bitsandbytes uses."""
    from scipy.stats import norm

    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    positive = norm.ppf(np.linspace(offset, 0.5, 9))
    negative = -norm.ppf(np.linspace(offset, 0.5, 8))
    levels = np.sort(np.concatenate([positive[:-1], negative])) / positive[0]
    assert len(levels) == 16
    assert agree(nf4.LEVELS.astype(np.float64), levels, single=True)


def test_all_levels_are_bitsandbytes_own(bitsandbytes):
    assert np.array_equal(nf4.LEVELS, bitsandbytes.get_4bit_type("nf4", device="cpu").numpy())
    assert np.array_equal(fp4.LEVELS, bitsandbytes.get_4bit_type("fp4", device="cpu").numpy())
    assert np.array_equal(dynamic.LEVELS, bitsandbytes.create_dynamic_map().numpy())


# Codes


def drawn(size, seed, scale=1.0):
    """Normal values with outliers, and with zeros that may fill several blocks."""
    x = normal(size, seed=seed) * np.float32(scale)
    x[:: max(1, seed % 97)] *= 50
    x[size // 3 : size // 3 + seed % 200] = 0
    return x


sizes, each_seed = st.integers(1, 9000), st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("block_size", [4, 7, 32, 64, 4096])
@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@given(seed=each_seed, size=sizes, scale=st.sampled_from([1.0, 1e-30, 1e30, 1e-40]))
def test_codes_and_constants_are_bitsandbytes(bitsandbytes, scheme, block_size, seed, size, scale):
    """Its function takes blocks of 32 and more; the operation behind it takes any."""
    x = drawn(size, seed, scale)
    ours = quantize(x, scheme, block_size)
    codes, absmax = torch.ops.bitsandbytes.quantize_4bit(torch.from_numpy(x), block_size, scheme, torch.uint8)
    assert np.array_equal(ours.codes, codes.numpy().ravel())
    assert np.array_equal(ours.absmax, absmax.numpy())


@pytest.mark.parametrize("block_size", [4, 7, 32, 64])
@given(seed=each_seed, size=sizes)
def test_nested_constants_are_bitsandbytes_reference(bitsandbytes, block_size, seed, size):
    """The mean is the same within rounding. Given the mean, codes and constants are equal, in tails of both kinds."""
    x = drawn(size, seed)
    plain, ours = quantize(x, "nf4", block_size), quantize(x, "nf4", block_size, double=True)
    assert np.array_equal(ours.codes, plain.codes), "the codes are those of the exact constants"
    exact = torch.from_numpy(plain.absmax)
    assert agree(ours.absmax.mean, exact.mean().reshape(1).numpy(), single=True)
    rest = exact - torch.from_numpy(ours.absmax.mean)
    codes, absmax = torch.ops.bitsandbytes.quantize_blockwise.default.redispatch(
        REFERENCE, rest, bitsandbytes.create_dynamic_map(), codebook.CONSTANTS_IN_BLOCK
    )
    assert np.array_equal(ours.absmax.rest.codes, codes.numpy())
    assert np.array_equal(ours.absmax.rest.absmax, absmax.numpy())


@pytest.mark.parametrize("block_size", [32, 64])
@given(seed=each_seed, size=st.integers(1, 60_000))
def test_double_quantization_is_bitsandbytes_on_its_grid(bitsandbytes, block_size, seed, size):
    """On a CPU bitsandbytes looks up the codes of constants in a table of 65536 numbers from -1 to 1.

    So a constant gets the code of the number of the table that is next to it, which near zero, or beside a middle, is
    not that of the nearest level. Ours are the nearest levels, as in bitsandbytes' other backends; for the table's
    numbers they are the same codes.
    """
    x = drawn(size, seed)
    ours = quantize(x, "nf4", block_size, double=True)
    codes, state = bitsandbytes.quantize_4bit(
        torch.from_numpy(x), blocksize=block_size, quant_type="nf4", compress_statistics=True
    )
    assert np.array_equal(ours.codes, codes.numpy().ravel())
    offset = state.offset.numpy()
    assert agree(ours.absmax.mean, offset.reshape(1), single=True)
    rest = quantize(x, "nf4", block_size).absmax - offset
    largest = blocks.largest_of_blocks(rest, codebook.CONSTANTS_IN_BLOCK)
    assert np.array_equal(largest, state.state2.absmax.numpy())
    fractions = rest * np.repeat(1 / np.maximum(largest, codebook.SMALLEST), codebook.CONSTANTS_IN_BLOCK)[: rest.size]
    place = ((fractions + np.float32(1)) * np.float32(0.5) * np.float32(65535) + np.float32(0.5)).astype(np.uint16)
    table = np.float32(-1) + np.float32(2) * np.arange(65536, dtype=np.float32) / np.float32(65535)
    told = np.repeat(largest > 0, codebook.CONSTANTS_IN_BLOCK)[: rest.size]  # otherwise every code stands for 0
    assert np.array_equal(codebook.nearest(table[place], dynamic.LEVELS)[told], state.absmax.numpy()[told])


def test_the_grid_of_bitsandbytes_gives_few_constants_another_code(bitsandbytes):
    x = normal(3000, 64)
    ours = quantize(x, "nf4", double=True).absmax.rest.codes
    _, state = bitsandbytes.quantize_4bit(torch.from_numpy(x), quant_type="nf4", compress_statistics=True)
    assert f"{(ours != state.absmax.numpy()).mean():.3f}" == "0.002"


@given(seed=each_seed, size=st.integers(1, 3000), block_size=st.sampled_from([1, 7, 256]))
def test_codes_of_the_dynamic_levels_are_bitsandbytes(bitsandbytes, seed, size, block_size):
    """They are compared with its reference, which is not what it runs on a CPU: see above."""
    x = normal(size, seed=seed) ** 5
    codes, constants = torch.ops.bitsandbytes.quantize_blockwise.default.redispatch(
        REFERENCE, torch.from_numpy(x), bitsandbytes.create_dynamic_map(), block_size
    )
    ours = quantize(x, "dynamic8", block_size)
    assert np.array_equal(ours.codes, codes.numpy())
    assert np.array_equal(ours.absmax, constants.numpy())


@given(seed=each_seed, count=st.integers(1, 9), width=st.integers(1, 70))
def test_int8_rows_are_llm_int8s(bitsandbytes, seed, count, width):
    x = normal(count, width, seed=seed)
    codes, constants, _ = bitsandbytes.int8_vectorwise_quant(torch.from_numpy(x))
    ours = quantize(x, "int8")
    assert np.array_equal(ours.codes.reshape(x.shape), codes.numpy())
    assert np.array_equal(ours.absmax, constants.numpy())
    theirs = bitsandbytes.int8_vectorwise_dequant(codes, constants).numpy()
    assert agree(dequantize(ours), theirs, single=True)


# Values


@each_scheme
def test_the_form_of_an_array_makes_no_difference(scheme):
    x = normal(6, 10)
    expected = dequantize(quantize(x, scheme))
    assert (expected.shape, expected.dtype) == (x.shape, np.float32)
    for form in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x.astype(np.float64)):
        assert np.array_equal(dequantize(quantize(form, scheme)), expected)
    wide = dequantize(quantize(x, scheme), np.float64)
    assert wide.dtype == np.float64
    assert np.array_equal(wide.astype(np.float32), expected) or scheme.startswith("int")


@each_scheme
@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (2, 3, 5)])
def test_any_shape_may_be_quantized(scheme, shape):
    x = np.asarray(normal(*shape))
    assert dequantize(quantize(x, scheme)).shape == shape
    assert not dequantize(quantize(np.zeros(shape, np.float32), scheme)).any()


@each_scheme
def test_rows_and_leaves(scheme):
    """A matrix can be dequantized by rows, and saved and read by the names of its arrays."""
    x = normal(7, 13)
    quantized = quantize(x, scheme, 10)
    whole = dequantize(quantized)
    assert np.array_equal(np.concatenate([rows(quantized, 0, 3), rows(quantized, 3, 7)]), whole)
    leaves = dict(named(quantized))
    assert {"codes"} < leaves.keys()
    assert sum(array.nbytes for array in leaves.values()) == quantized.bytes()
    read = mapped(np.copy, quantized)
    assert type(read) is type(quantized)
    assert np.array_equal(dequantize(read), whole)


def test_double_quantization_takes_a_quarter_of_the_constants():
    plain, double = quantize(normal(64, 4096), "nf4"), quantize(normal(64, 4096), "nf4", double=True)
    assert (plain.bytes() - plain.levels.nbytes) / plain.shape[0] / 4096 * 8 == 4.5
    assert (double.bytes() - double.levels.nbytes) / double.shape[0] / 4096 * 8 < 4.13
    assert {"absmax.rest.codes", "absmax.rest.absmax", "absmax.mean"} < dict(named(double)).keys()


def test_an_outlier_spoils_its_block_alone():
    x = normal(4, 64)
    spoiled = x.copy()
    spoiled[1, 0] = 1000
    for scheme in ("int4", "nf4", "fp4", "zero_point4"):
        before, after = dequantize(quantize(x, scheme, 64)), dequantize(quantize(spoiled, scheme, 64))
        assert np.array_equal(np.delete(before, 1, axis=0), np.delete(after, 1, axis=0))
        assert not np.array_equal(after[1], before[1])


# Errors as they are derived


def measured(scheme, block_size, seed=3):
    """The mean square error on a normal sample, and its standard error."""
    x = normal(2**20, seed=seed)
    squares = (dequantize(quantize(x, scheme, block_size)).astype(np.float64) - x) ** 2
    means = squares.reshape(-1, block_size).mean(axis=1)
    return means.mean(), means.std() / math.sqrt(len(means))


@pytest.mark.parametrize("scheme", ["int8", "int4", "zero_point8", "zero_point4"])
def test_the_error_of_whole_numbers_is_that_of_the_step(scheme):
    """The mean of step² / 12 over the blocks. By absmax, the largest of a block has no error."""
    quantized = quantize(normal(2**20, seed=3), scheme, 64)
    by_absmax = scheme.startswith("int")
    steps = absmax.steps(quantized, np.float64) if by_absmax else quantized.steps.astype(np.float64)
    error, deviation = measured(scheme, 64)
    expected = (steps**2).mean() / 12 * (63 / 64 if by_absmax else 1)
    assert abs(error - expected) <= 5 * deviation


def root_of_error(x, quantized):
    """The root of the mean square error of an array."""
    return math.sqrt(((dequantize(quantized, np.float64) - x) ** 2).mean())


def test_what_the_docstrings_tell_of_normal_values():
    x = normal(2**14, 64, seed=3)
    errors = {(scheme, size): root_of_error(x, quantize(x, scheme, size)) for size in (4, 64)
              for scheme in ("int8", "int4", "nf4", "zero_point4")}  # fmt: skip
    assert (f"{errors['int8', 64]:.3f}", f"{errors['int4', 64]:.2f}") == ("0.006", "0.11")
    assert errors["int4", 4] < errors["nf4", 4]
    assert errors["zero_point4", 64] < errors["nf4", 64] < errors["int4", 64]
    spoiled = x.copy()
    spoiled[:, 0] = 26
    assert f"{root_of_error(spoiled, quantize(spoiled, 'int8', 64)) / errors['int8', 64]:.0f}" == "10"
    ranges, twice = x.max(axis=1) - x.min(axis=1), 2 * np.abs(x).max(axis=1)
    assert f"{1 - ranges.mean() / twice.mean():.1f}" == "0.1"


def test_the_levels_of_the_dynamic_code_are_as_dense_as_its_docstring_says():
    large = dynamic.LEVELS[dynamic.LEVELS >= 0.1].astype(np.float64)
    assert agree(np.array([np.diff(large).max() / 2]), np.array([0.9 / 128]), single=True)
    smallest = dynamic.LEVELS[dynamic.LEVELS > 0][0]
    assert (dynamic.LEVELS[codebook.nearest(np.float32([1e-6, -1e-6]), dynamic.LEVELS)] == [smallest, -smallest]).all()


def test_an_outlier_spoils_the_nested_constants_of_other_blocks_as_bitsandbytes_does(bitsandbytes):
    """The trap of double quantization in the docstring of `codebook`."""
    x = (0.02 * normal(256, 64, seed=5)).astype(np.float32)
    expected = root_of_error(x[1:], quantize(x[1:], "nf4", double=True))
    for outlier in (100, 1000):
        x[0, 10] = outlier
        ours = dequantize(quantize(x, "nf4", double=True))
        codes, state = bitsandbytes.quantize_4bit(torch.from_numpy(x), quant_type="nf4", compress_statistics=True)
        theirs = bitsandbytes.dequantize_4bit(codes, state).numpy()
        for values in (ours, theirs):
            others, signs = values[1:].astype(np.float64), np.sign(values[1:]) * np.sign(x[1:])
            if outlier == 100:
                assert f"{math.sqrt(((others - x[1:]) ** 2).mean()) / expected:.1f}" == "3.6"
                assert (signs >= 0).all()
            else:
                assert (signs <= 0).all()


@pytest.mark.parametrize("block_size", [32, 64, 256])
@pytest.mark.parametrize(("scheme", "levels"), [("nf4", nf4.LEVELS), ("fp4", fp4.LEVELS)])
def test_the_error_of_levels_is_the_integral_over_the_normal_density(scheme, levels, block_size):
    """Formula (2) of `nf4`, by the sum over 20,000 points; the largest of a block is drawn from its distribution."""
    from scipy.stats import norm

    share = (np.arange(400) + 0.5) / 400
    largest = norm.ppf((1 + share ** (1 / block_size)) / 2)  # P(all |x| < a) = (2 Φ(a) - 1)^n
    fractions = np.linspace(-1, 1, 20001)
    by_size = np.sort(levels.astype(np.float64))
    off = by_size[np.searchsorted((by_size[:-1] + by_size[1:]) / 2, fractions)] - fractions
    density = norm.pdf(largest[:, np.newaxis] * fractions)
    errors = largest**2 * (density * off**2).sum(axis=1) / density.sum(axis=1)
    error, deviation = measured(scheme, block_size)
    expected = errors.mean() * (block_size - 1) / block_size
    assert abs(error - expected) <= 5 * deviation + expected / 400  # the last term is for the sum over 400 largest


def test_nf4_is_better_than_int4_and_fp4_is_worse():
    errors = {scheme: math.sqrt(measured(scheme, 64)[0]) for scheme in ("nf4", "int4", "fp4")}
    assert errors["nf4"] < errors["int4"] < errors["fp4"]


# Bad input


@each_scheme
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([[1, 2], [np.nan, np.inf]]), r"2 of 4 .* not finite in float32, the first nan at \(1, 0\)"),
        (np.array([1.0, 1e39]), r"1 of 2 .* not finite in float32, the first 1e\+39 at \(1,\)"),
        (np.zeros((0, 3), np.float32), r"has the shape \(0, 3\), which is empty; expected at least one value"),
        (np.ones(3, np.complex128), "are complex128; expected an array of float32 or float64"),
        (np.ones(3, np.int64), "are int64; expected an array of float32 or float64"),
        ([1.0, 2.0], "are list; expected an array of float32 or float64"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_values_are_refused_in_one_line(scheme, x, message):
    with pytest.raises(InputError, match=message) as caught:
        quantize(x, scheme)
    assert "\n" not in str(caught.value)


@each_scheme
@pytest.mark.parametrize("block_size", [0, -3, "column"])
def test_bad_block_sizes_are_refused(scheme, block_size):
    with pytest.raises(InputError, match=f"the block size is {block_size!r}; expected a number from 1, or"):
        quantize(np.ones(4, np.float32), scheme, block_size)


def test_what_is_quantized_already_is_refused_and_so_are_unknown_schemes():
    quantized = quantize(np.ones(4, np.float32), "nf4")
    with pytest.raises(InputError, match="are a Codebook, quantized already; expected floats"):
        quantize(quantized, "int8")
    with pytest.raises(InputError, match="the scheme of quantization is 'nf5'; expected one of int8, int4"):
        quantize(np.ones(4, np.float32), "nf5")
    with pytest.raises(InputError, match="the scheme int8 has no option double; expected none"):
        quantize(np.ones(4, np.float32), "int8", double=True)


# The document


def row(scheme, double=False):
    """A line of the document's table, measured on a million normal values in rows of 1024."""
    x = normal(1024, 1024, seed=4)
    quantized = quantize(x, scheme, **({"double": True} if double else {}))
    error = math.sqrt(((dequantize(quantized).astype(np.float64) - x) ** 2).mean())
    name = f"`{scheme}`, double" if double else f"`{scheme}`"
    block = SCHEMES[scheme].block_size
    return f"| {name} | {block} | {quantized.bytes() / x.size:.4f} | {error:.4f} |"


@pytest.mark.parametrize(("scheme", "double"), [*((scheme, False) for scheme in SCHEMES), ("nf4", True), ("fp4", True)])
def test_the_table_of_the_document_is_true(scheme, double):
    assert row(scheme, double) in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(64, 96), (128, 64), (3, 300)])
def test_a_weight_with_as_many_rows_as_a_block_has_numbers_is_multiplied_right(scheme, shape):
    """Whether rows and blocks have one length is asked of the row, not of the number of rows."""
    weight = quantize(normal(*shape), scheme, 64)
    x = normal(1, shape[1], seed=1).astype(np.float64)
    y, _ = quantized_linear.forward(x, weight)
    assert agree(y, x @ dequantize(weight, np.float64).T)
