"""`formats` of `numpygpt.numerics`: real mistakes in rounding to short formats, and in their bit patterns."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.numerics import formats

_NEAREST = "numerics.formats:_nearest"
_ROUND = "numerics.formats:_round"
_UNKNOWN = "no public report known"

BUGS = (
    Bug(
        "fp8_cast_wrong_above_240",
        "the largest exponent field of fp8_e4m3fn is taken for infinities, so that all from 256 to 448 is lost",
        "sglang#37140",
        "fp8_e4m3fn.rounded",
        ("rounding", "patterns", "overflow"),
        (
            Change(
                _ROUND,
                "np.abs(nearest) > format_.largest",
                "np.abs(nearest) > math.ldexp(2.0 - format_.epsilon, format_.bias)",
            ),
        ),
    ),
    Bug(
        "rounding_by_truncation",
        "the bits that a format lacks are cut off, so that every value moves toward zero",
        "universal#1133",
        "bf16.rounded",
        ("rounding", "nearest_number"),
        (
            Change(
                _NEAREST,
                "nearest -= c  # (2)",
                "nearest -= c\n"
                "    nearest = np.where(np.abs(nearest) > np.abs(x), nearest - np.copysign(quantum, x), nearest)",
            ),
        ),
    ),
    Bug(
        "ties_away_for_ties_to_even",
        "half of the last place is added and the rest cut off, so that every tie moves away from zero",
        _UNKNOWN,
        "bf16.rounded",
        ("rounding", "nearest_number"),
        (Change(_NEAREST, "if format_.ties_away:", "if True:"),),
    ),
    Bug(
        "tf32_ties_to_even",
        "tf32 is rounded as the other formats are, not as the hardware rounds it",
        _UNKNOWN,
        "tf32.rounded",
        ("rounding", "nearest_number"),
        (Change(_NEAREST, "if format_.ties_away:", "if False:"),),
    ),
    Bug(
        "subnormals_flushed",
        "what is below the smallest normal number becomes zero",
        "rocm-libraries#11325, BFloat16s.jl#125",
        "bf16.rounded",
        ("rounding", "patterns"),
        (
            Change(
                _NEAREST,
                "nearest -= c  # (2)",
                "nearest -= c\n    nearest[np.abs(nearest) < format_.smallest_normal] = 0",
            ),
        ),
    ),
    Bug(
        "subnormals_with_all_digits",
        "below the smallest normal number the steps go on becoming smaller, as if the exponent had no end",
        "jpype#1281",
        "bf16.rounded",
        ("rounding", "nearest_number"),
        (Change(_NEAREST, "np.clip(quantum, format_.smallest_normal, beyond", "np.clip(quantum, 1e-300, beyond"),),
    ),
    Bug(
        "overflow_to_infinity_without_one",
        "what is too large for fp8_e4m3fn becomes an infinity, which the format does not have",
        _UNKNOWN,
        "fp8_e4m3fn.rounded",
        ("rounding", "overflow"),
        (Change(_ROUND, "np.inf if format_.infinite else np.nan", "np.inf"),),
    ),
    Bug(
        "nan_rounded_to_infinity",
        "the mantissa of a NaN is rounded away, which leaves an infinity",
        "dotnet/runtime#130583, rocm-libraries#11325",
        "bf16.rounded",
        ("rounding", "overflow"),
        (Change(_ROUND, "np.abs(nearest) > format_.largest", "~(np.abs(nearest) <= format_.largest)"),),
    ),
    Bug(
        "every_cast_saturates",
        "an overflow becomes the largest number, so that nobody sees it",
        "universal#1302",
        "bf16.rounded",
        ("rounding", "overflow"),
        (Change(_ROUND, "format_.largest if saturate else", "format_.largest if True else"),),
    ),
    Bug(
        "sign_of_zero_lost",
        "a negative number that is rounded to zero becomes a positive zero",
        _UNKNOWN,
        "bf16.rounded",
        ("rounding", "nearest_number"),
        (Change(_ROUND, "np.copysign(nearest, x, out=out", "np.add(nearest, 0.0, out=out"),),
    ),
    Bug(
        "rounded_twice",
        "a float64 is rounded to float32 first, which may make a tie of what was none",
        "Halide#8906, julia#57805",
        "bf16.of_float64",
        ("nearest_number", "rounding"),
        (Change(_ROUND, "values.astype(np.float64)", "values.astype(np.float32).astype(np.float64)"),),
    ),
    Bug(
        "subnormal_exponent_off_by_one",
        "the exponent field 0 is taken as it is, so that subnormal numbers are half as large",
        _UNKNOWN,
        "bf16.decoded",
        ("patterns", "nearest_number"),
        (Change("numerics.formats:decode", "np.maximum(e, 1)", "e"),),
    ),
    Bug(
        "nan_encoded_as_a_number",
        "a NaN is encoded as in a format with infinities, and there the pattern of fp8_e4m3fn is a number",
        _UNKNOWN,
        "fp8_e4m3fn.encoded",
        ("patterns", "overflow"),
        (
            Change(
                "numerics.formats:encode",
                "(one // 2 if format_.infinite else one - 1)",
                "one // 2",
            ),
        ),
    ),
)

CONTROLS = (
    Bug(
        "quantum_of_larger_powers",
        "the powers of two end later than they have to",
        "control",
        "none",
        (),
        (Change(_NEAREST, "format_.bias + 2", "format_.bias + 3"),),
    ),
)

RECORD = BugsOnly(formats, "rounding has no derivative", BUGS, CONTROLS)
