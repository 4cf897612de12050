"""PyTorch's CPU random streams, bit for bit, in NumPy alone.

`TorchGenerator(seed)` draws what `torch.Generator().manual_seed(seed)` draws on a CPU, number after number,
in whatever order the methods are called. So a model that is initialized here holds PyTorch's weights, and a
training run has PyTorch's dropout masks and batches. Every method says how PyTorch draws, and where this can
be read in PyTorch's source.

The engine is the Mersenne Twister MT19937 (Matsumoto and Nishimura 1998, ACM TOMACS 8:1). It has a key of 624
words. They are used one by one, and then stirred to give 624 new ones. NumPy has the same engine and seeds it
in the same way. Its words are drawn through `RandomState.randint`, which is the fastest way to them, and whose
stream NumPy has promised never to change (NEP 19).

What is exact. On a processor for which PyTorch has vector kernels (x86-64 with AVX2 or AVX-512), every draw
equals PyTorch's bit for bit, and so does the state after it. This rests on three facts:

  - PyTorch is compiled there with fused multiply-adds: a * b + c is rounded once. `_multiply_add` does the same,
    and so does `_fused`, in cases in which a simpler computation is enough.
  - Its float32 normals come from the polynomials of the Cephes library, vectorized in
    aten/src/ATen/native/cpu/avx_mathfun.h. `_log` and `_sine_and_cosine` round where those do. They are
    made of +, * and square roots, so their bits are the same on every machine; those of np.log and np.cos
    are not.
  - Its other logarithms, sines and cosines are the C library's, in float64. They are taken from there,
    through `math`: NumPy's own differ in the last bit on some processors.

On other processors PyTorch draws the same numbers, except that some last bits differ: those of uniforms with
bounds, because PyTorch rounds them twice, and those of normals, because PyTorch takes log, sine and cosine from
another library.
"""

import math
import operator
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from numpygpt.errors import InputError
from numpygpt.shapes import Array, Bool, Inexact, Integer

Size: TypeAlias = int | Sequence[int]
Real: TypeAlias = float | int

#: How many numbers are drawn at a time. Their words, and a dozen operands of the same length, stay in a core's
#: second-level cache.
BLOCK = 2**14

#: PyTorch turns uniforms into normals sixteen at a time. If fewer are asked for, it draws them one by one.
NORMALS_AT_A_TIME = 16

#: From this range on, torch.randint takes 64 bits for a number: the remainders of 32 bits would not be equally likely.
WIDE_RANGE = 2**28

#: From this length on, torch.randperm uses another algorithm.
LONG_PERMUTATION = (2**32 - 1) // 20

KEY_WORDS = 624

#: How the bytes of torch.Generator.get_state() are laid out: CPUGeneratorImplState in
#: aten/src/ATen/CPUGeneratorImpl.cpp.
TORCH_STATE = np.dtype(
    [
        ("seed", np.uint64),
        ("left", np.int32),  # draws until the key is stirred, counting the draw that stirs it
        ("seeded", np.int32),
        ("next", np.uint64),  # the word of the key that the next draw takes
        ("key", np.uint64, KEY_WORDS),  # 32 bits each
        ("unused_normal_x", np.float64),
        ("cached_normal", np.float64),
        ("unused_normal_rho", np.float64),
        ("cached_normal_is_valid", np.int32),
        ("padding", np.int32),
        ("unused_float32_normal", np.float32),  # PyTorch's CPU kernels draw single normals in float64 only
        ("unused_float32_normal_is_valid", np.int32),
    ]
)


class GeneratorState(NamedTuple):
    """All that the next draws depend on. It can be saved, and given to `TorchGenerator.set_state` again."""

    seed: int  # as PyTorch's initial_seed() reports it, in [0, 2^64)
    key: Integer[Array, "624"]  # the engine's words, uint32
    position: int  # how many of the words are used, 1 to 624
    cached_normal: float | None  # the second of a pair of normals drawn one by one, while it waits to be used


class TorchGenerator:
    """PyTorch's CPU generator: aten/src/ATen/CPUGeneratorImpl.cpp, aten/src/ATen/core/MT19937RNGEngine.h.

    seed   an int in [-2^63, 2^64), taken modulo 2^64 as torch.manual_seed takes it; the engine uses its low
           32 bits. None: a fresh seed from the operating system

    Sizes are ints or tuples of ints. The attribute `seed` is the seed modulo 2^64.

    Raises InputError for any other seed. torch.manual_seed also accepts a bool, and a float, which it cuts to an int.
    """

    def __init__(self, seed: Any = None) -> None:
        self.seed = secrets.randbits(64) if seed is None else _checked_seed(seed)
        self._engine = np.random.RandomState(self.seed % 2**32)
        self._cached_normal: float | None = None

    # Uniform numbers

    def random(self, size: Size) -> Inexact[Array, "..."]:
        """float64 uniforms in [0, 1), as torch.rand(size, dtype=torch.float64) gives them.

        Each is the low 53 bits of a 64-bit draw, times 2^-53 (uniform_real in
        aten/src/ATen/core/TransformationHelper.h).
        """
        return _filled(size, np.float64, self._uniform_float64)

    def uniform(
        self,
        size: Size,
        low: Real = 0.0,
        high: Real = 1.0,
        dtype: DTypeLike = np.float32,
        *,
        out: Array | None = None,
    ) -> Inexact[Array, "..."]:
        """Uniforms in [low, high), as torch.empty(size, dtype=dtype).uniform_(low, high) gives them.

        Each is x (high - low) + low, rounded once. In float32, x is the low 24 bits of a 32-bit draw, times
        2^-24; in float64, it is what `random` draws. A result that was rounded up to high becomes low
        (uniform_kernel in aten/src/ATen/native/cpu/DistributionTemplates.h). A tensor that is not contiguous
        gets the same numbers, in the order of its memory.

        dtype   float32 or float64
        out     a contiguous array of this size, which is filled and returned, in place of a new one; it may have
                any dtype that holds the numbers, which are drawn in `dtype`

        Raises InputError for another dtype, for an `out` that does not fit, and unless low <= high and both are
        finite.
        """
        dtype = _checked_dtype(dtype)
        low, high = _checked_number("low", low, dtype), _checked_number("high", high, dtype)
        if low > high:
            raise InputError(f"uniform: low is {low} and high is {high}; give low <= high")
        span = float(dtype.type(high) - dtype.type(low))

        # If low = -high, then x span + low = (x - 1/2) span. x - 1/2 is exact, so this gives the same, and faster.
        shift, term = (0.5, 0.0) if low == -high else (0.0, low)

        def draw(count: int) -> Array:
            x = self._unit_uniform(count, dtype)
            x -= shift
            numbers = _multiply_add(x, span, term)
            np.copyto(numbers, low, where=numbers == high)
            return numbers

        return _filled(size, dtype, draw, out)

    def bernoulli(self, p: Real, size: Size) -> Bool[Array, "..."]:
        """Booleans, True with probability p, as torch.empty(size).bernoulli_(p) gives them.

        PyTorch draws a float64 uniform for each, and takes True if it is below p (bernoulli_kernel with a number
        for p in aten/src/ATen/native/cpu/DistributionTemplates.h). Here the integer that the uniform would be
        made of is compared with 2^53 p, which gives the same. Dropout at a rate keeps an element if
        bernoulli(1 - rate) is True for it (aten/src/ATen/native/Dropout.cpp).

        Raises InputError unless 0 <= p <= 1.
        """
        if not 0 <= p <= 1:
            raise InputError(f"bernoulli: the probability p is {p}; give a number from 0 to 1")
        limit = np.uint64(math.ceil(p * 2.0**53))
        return _filled(size, np.bool_, lambda count: self._low_53_bits(count) < limit)

    # Normal numbers

    def normal(
        self,
        size: Size,
        mean: Real = 0.0,
        std: Real = 1.0,
        dtype: DTypeLike = np.float32,
        *,
        contiguous: bool = True,
        out: Array | None = None,
    ) -> Inexact[Array, "..."]:
        """Normal numbers, as torch.empty(size, dtype=dtype).normal_(mean, std) gives them; torch.randn by default.

        If they are sixteen or more, sixteen uniforms of the dtype make sixteen normals, by the transform of Box
        and Muller (1958, Ann. Math. Stat. 29:2). The n % 16 uniforms that are left over are thrown away, and the
        last sixteen normals are drawn once more. If they are fewer, they are drawn one by one in float64,
        whatever the dtype is. This makes pairs, and the second of a pair waits in the generator for the next
        normal that is drawn one by one (normal_kernel and normal_fill in
        aten/src/ATen/native/cpu/DistributionTemplates.h).

        dtype        float32 or float64
        contiguous   False: the normals of a tensor that is not contiguous, such as x.T or x[:, ::2]. They are drawn
                     one by one at any size, in the order of the tensor's memory, which is the order of the result
        out          as in `uniform`

        Raises InputError for another dtype, for an `out` that does not fit, for a negative std, and if mean or std
        is not finite.
        """
        dtype = _checked_dtype(dtype)
        values = _memory_to_fill(size, dtype, out)
        flat = values.reshape(-1)
        if flat.size >= NORMALS_AT_A_TIME and contiguous:
            mean, std = _checked_number("mean", mean, dtype), _checked_std(std, dtype)
            self._fill_normal(flat, mean, std, dtype)
        else:
            mean, std = _checked_number("mean", mean, np.float64), _checked_std(std, np.float64)
            numbers = _multiply_add(self._normals_one_by_one(flat.size), std, mean)
            flat[:] = numbers.astype(dtype)
        return values

    def _fill_normal(self, flat: Array, mean: float, std: float, dtype: np.dtype) -> None:
        def draw(count: int) -> Array:
            return _multiply_add(_box_muller(self._unit_uniform(count, dtype)), std, mean)

        left_over = flat.size % NORMALS_AT_A_TIME
        _fill(flat[: flat.size - left_over], draw)
        if left_over:
            self._unit_uniform(left_over, dtype)
            flat[-NORMALS_AT_A_TIME:] = draw(NORMALS_AT_A_TIME)

    def _normals_one_by_one(self, count: int) -> Array:
        """`count` standard normals in float64 (normal_distribution in aten/src/ATen/core/DistributionsHelper.h)."""
        waiting = [] if self._cached_normal is None else [self._cached_normal]
        u1, u2 = self.random(((count - len(waiting) + 1) // 2, 2)).T
        radius = np.sqrt(-2 * _log1p_float64(-u2))
        sine, cosine = _sine_and_cosine_float64(2 * math.pi * u1)
        normals = np.append(waiting, np.stack([radius * cosine, radius * sine], axis=1))
        self._cached_normal = float(normals[-1]) if normals.size > count else None
        return normals[:count]

    # Numbers made of uniforms

    def exponential(self, size: Size, dtype: DTypeLike = np.float32) -> Inexact[Array, "..."]:
        """Exponential numbers of mean 1, as torch.empty(size, dtype=dtype).exponential_() gives them.

        Each is -log1p(-u) of a float64 uniform u, rounded to the dtype, float32 or float64 (exponential_kernel in
        aten/src/ATen/native/cpu/DistributionTemplates.h). For float32 the logarithm is NumPy's, which is forty
        times as fast. On some processors its last bit in float64 differs from the C library's; after rounding to
        float32 about one number in 10^10 shows it.

        Raises InputError for another dtype.
        """
        dtype = _checked_dtype(dtype)
        log1p = np.log1p if dtype == np.float32 else _log1p_float64
        return _filled(size, dtype, lambda count: -log1p(-self._uniform_float64(count)))

    def multinomial(
        self, probabilities: Array, num_samples: int = 1, replacement: bool = False
    ) -> Integer[Array, "... num_samples"]:
        """Indices drawn from each row with its probabilities, as torch.multinomial of a contiguous tensor gives them.

        probabilities   (V) or (B, V), float32 or float64; a row need not sum to 1
        returns         (num_samples) or (B, num_samples), int64

        One sample, or several without replacement, are the indices of the largest p / q, with an exponential
        number q for each p (multinomial_out in aten/src/ATen/native/Distributions.cpp). Several with
        replacement are the places at which float64 uniforms fall among the cumulative sums of p
        (aten/src/ATen/native/cpu/MultinomialKernel.cpp).

        Raises InputError for probabilities of another shape or dtype, for one that is negative, infinite or NaN,
        for a row of zeros, for fewer samples than one, and for more samples without replacement than a row has
        probabilities above 0 (PyTorch then takes some that have the probability 0).
        """
        probabilities = _checked_probabilities(probabilities)
        if num_samples > 1 and replacement:
            return self._multinomial_with_replacement(probabilities, num_samples)
        most = np.count_nonzero(probabilities, axis=-1).min(initial=probabilities.shape[-1])
        if not 1 <= num_samples <= most:
            raise InputError(
                f"multinomial: num_samples is {num_samples}; give 1 to {most}, a row's number of"
                " probabilities above 0, or replacement=True"
            )
        keys = probabilities / self.exponential(probabilities.shape, probabilities.dtype)
        if num_samples == 1:
            return keys.argmax(axis=-1, keepdims=True)
        return np.argsort(-keys, axis=-1, kind="stable")[..., :num_samples]

    def _multinomial_with_replacement(self, probabilities: Array, num_samples: int) -> Array:
        cumulative = np.cumsum(probabilities, axis=-1)
        cumulative /= cumulative[..., -1:]
        uniforms = self.random((*probabilities.shape[:-1], num_samples))
        indices = np.empty(uniforms.shape, np.int64)
        for row in np.ndindex(uniforms.shape[:-1]):
            indices[row] = np.searchsorted(cumulative[row], uniforms[row])
        return indices

    # Whole numbers

    def randint(self, low: int, high: int, size: Size) -> Integer[Array, "..."]:
        """int64 numbers from low to high - 1, as torch.randint(low, high, size) gives them.

        Each is low + z % (high - low). Here z is a 32-bit draw, or a 64-bit draw if high - low >= 2^28
        (uniform_int_from_to_distribution in aten/src/ATen/core/DistributionsHelper.h).

        Raises InputError unless -2^63 <= low < high < 2^63.
        """
        low, high = operator.index(low), operator.index(high)
        if not -(2**63) <= low < high < 2**63:
            raise InputError(f"randint: low is {low} and high is {high}; give -2^63 <= low < high < 2^63")
        span = high - low

        def draw(count: int) -> Array:
            words = self._raw32(count) if span < WIDE_RANGE else self._raw64(count)
            words %= words.dtype.type(span)
            return words.astype(np.int64) + low

        return _filled(size, np.int64, draw)

    def random_int64(self) -> int:
        """A 64-bit draw modulo 2^63, as torch.empty((), dtype=torch.int64).random_() gives it.

        Each time that somebody iterates over a torch DataLoader, it draws one such number as its base seed. With
        shuffle=True it draws a second one, which seeds a new generator for randperm
        (torch/utils/data/dataloader.py and sampler.py).
        """
        return int(self._raw64(1)[0]) % 2**63

    def randperm(self, n: int) -> Integer[Array, "n"]:
        """The numbers 0 to n - 1 in random order, int64, as torch.randperm(n) gives them.

        This is Fisher and Yates's shuffle: for each place i except the last, the numbers at i and at
        i + z % (n - i) change places, with a 32-bit draw z (randperm_cpu in
        aten/src/ATen/native/TensorFactories.cpp).

        Raises InputError unless 0 <= n < 214748364. From there on PyTorch uses another algorithm.
        """
        if not 0 <= n < LONG_PERMUTATION:
            raise InputError(f"randperm: n is {n}; give 0 <= n < {LONG_PERMUTATION}")
        order = list(range(n))
        remaining = np.arange(n, 1, -1, dtype=np.uint32)
        for i, offset in enumerate((self._raw32(remaining.size) % remaining).tolist()):
            order[i], order[i + offset] = order[i + offset], order[i]
        return np.array(order, dtype=np.int64)

    # The state

    def get_state(self) -> GeneratorState:
        """A copy of the state: `set_state` of it, in this or another generator, repeats the draws that follow."""
        engine = self._engine.get_state(legacy=False)["state"]
        return GeneratorState(self.seed, engine["key"], int(engine["pos"]), self._cached_normal)

    def set_state(self, state: GeneratorState) -> None:
        """Continue from this state. Raises InputError, and changes nothing, if it is not a generator's state."""
        seed, key, position, cached_normal = state
        key = np.asarray(key)
        if key.dtype != np.uint32 or key.shape != (KEY_WORDS,):
            raise InputError(f"random state: the key is {_described(key)}; it must be uint32 ({KEY_WORDS},)")
        if not 1 <= position <= KEY_WORDS:
            raise InputError(f"random state: the position is {position}; it must be from 1 to {KEY_WORDS}")
        self.seed = _checked_seed(seed)
        self._engine.set_state({"bit_generator": "MT19937", "state": {"key": key, "pos": position}})
        self._cached_normal = cached_normal

    def to_torch_state(self) -> Integer[Array, "5056"]:
        """The state as torch.Generator().set_state(torch.from_numpy(...)) takes it: uint8.

        The bytes are those of PyTorch's get_state(), except those of "next" before the first draw: PyTorch has 0
        there, and does not read it.
        """
        seed, key, position, cached_normal = self.get_state()
        record = np.zeros(1, TORCH_STATE)
        record["seed"], record["key"], record["seeded"] = seed, key, True
        record["next"], record["left"] = position, KEY_WORDS + 1 - position
        if cached_normal is not None:
            record["cached_normal"], record["cached_normal_is_valid"] = cached_normal, True
        return record.view(np.uint8)

    @classmethod
    def from_torch_state(cls, state: Any) -> "TorchGenerator":
        """A generator that goes on from the state that torch.Generator.get_state() returned.

        state   that tensor, or a uint8 array of its bytes

        Raises InputError for anything else.
        """
        found = np.asarray(state)
        if found.dtype != np.uint8 or found.shape != (TORCH_STATE.itemsize,):
            raise InputError(
                f"PyTorch random state: found {_described(found)}; give a CPU generator's get_state(),"
                f" uint8 ({TORCH_STATE.itemsize},)"
            )
        record = np.frombuffer(found.tobytes(), TORCH_STATE)[0]
        position = KEY_WORDS + 1 - int(record["left"])
        if not record["seeded"] or (record["left"] != 1 and record["next"] != position):
            raise InputError("PyTorch random state: no draws lead to it; give the get_state() of a CPU generator")
        key = record["key"].astype(np.uint32)
        cached_normal = float(record["cached_normal"]) if record["cached_normal_is_valid"] else None
        generator = cls(0)
        generator.set_state(GeneratorState(int(record["seed"]), key, position, cached_normal))
        return generator

    # Raw draws

    def _raw32(self, count: int) -> Array:
        return self._engine.randint(0, 2**32, count, dtype=np.uint32)

    def _raw64(self, count: int) -> Array:
        """Numbers of two 32-bit draws each; the first is the high word, in NumPy as in PyTorch's random64."""
        return self._engine.randint(0, 2**64, count, dtype=np.uint64)

    def _low_53_bits(self, count: int) -> Array:
        words = self._raw64(count)
        words &= np.uint64(2**53 - 1)
        return words

    def _uniform_float64(self, count: int) -> Array:
        return self._low_53_bits(count).view(np.int64) * 2.0**-53

    def _unit_uniform(self, count: int, dtype: np.dtype) -> Array:
        if dtype == np.float64:
            return self._uniform_float64(count)
        words = self._raw32(count)
        words &= np.uint32(2**24 - 1)
        uniforms = words.view(np.int32).astype(np.float32)
        uniforms *= np.float32(2.0**-24)
        return uniforms


# Filling an array, block after block


def _filled(size: Size, dtype: DTypeLike, draw: Callable[[int], Array], out: Array | None = None) -> Array:
    values = _memory_to_fill(size, dtype, out)
    _fill(values.reshape(-1), draw)
    return values


def _memory_to_fill(size: Size, dtype: DTypeLike, out: Array | None) -> Array:
    if out is None:
        return np.empty(size, dtype)
    shape = (size,) if isinstance(size, int) else tuple(size)
    if out.shape != shape or not out.flags.c_contiguous:
        raise InputError(
            f"random numbers: out is {_described(out)} with strides {out.strides}; give a contiguous array of"
            f" shape {shape}"
        )
    return out


def _fill(flat: Array, draw: Callable[[int], Array]) -> None:
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        block[:] = draw(block.size)


# Arithmetic that rounds as PyTorch's does


def _multiply_add(x: Array, factor: float, term: float) -> Array:
    """Round x * factor + term once, as a fused multiply-add does. x is float32 or float64, and may be overwritten.

    A sum that is rounded to odd keeps what a second rounding, to fewer bits, needs (Boldo and Melquiond 2008, IEEE
    Trans. Comput. 57:4). This holds as long as nothing underflows.
    """
    if term == 0:
        x *= factor
        x += term  # this gives zeros their sign
        return x
    if x.dtype == np.float32:
        x[...] = _sum_rounded_to_odd(_exact_product(x, factor), term)
        return x
    product, product_error = _product_and_error(x, factor)
    rest, rest_error = _sum_and_error(product_error, term)
    total, total_error = _sum_and_error(product, rest)
    return total + _sum_rounded_to_odd(total_error, rest_error)


def _fused(x: Array, factor: Any, term: Array) -> Array:
    """Compute x * factor + term in float64 and round it to float32. x is float32, and is overwritten.

    So it is rounded twice. But all 2^24 uniforms were compared with PyTorch, and none gives another normal.
    """
    exact = _exact_product(x, factor)
    exact += term
    x[...] = exact
    return x


def _exact_product(x: Array, factor: Any) -> Array:
    """The exact product in float64 of float32 numbers: they have 24 bits each, and float64 has room for 53."""
    product = x.astype(np.float64)
    product *= factor
    return product


def _product_and_error(x: Array, y: float) -> tuple[Array, Array]:
    """The rounded product in float64, and what the rounding lost (Dekker 1971, Numer. Math. 18:3)."""
    product = x * y
    (x_high, x_low), (y_high, y_low) = _halves(x), _halves(y)
    return product, (x_high * y_high - product + x_high * y_low + x_low * y_high) + x_low * y_low


def _halves(x: Any) -> tuple[Any, Any]:
    """Two numbers of 26 bits whose sum is x; products of such numbers are exact (Veltkamp; in the same paper)."""
    scaled = (2.0**27 + 1) * x
    high = scaled - (scaled - x)
    return high, x - high


def _sum_and_error(x: Array, y: Any) -> tuple[Array, Array]:
    """The rounded sum, and what the rounding lost (Knuth, The Art of Computer Programming 2, 4.2.2)."""
    total = x + y
    y_in_total = total - x
    return total, (x - (total - y_in_total)) + (y - y_in_total)


def _sum_rounded_to_odd(x: Array, y: Any) -> Array:
    """The sum if it is exact; if not, the one of its two float64 neighbors whose last bit is 1."""
    total, error = _sum_and_error(x, y)
    wrong = (error != 0) & (total.view(np.int64) & 1 == 0)
    return np.nextafter(total, np.copysign(np.inf, error), out=total, where=wrong)


def _from_c_library(function: Callable[[float], float], x: Array) -> Array:
    return np.fromiter(map(function, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)


# Box and Muller's transform


def _box_muller(uniforms: Array) -> Array:
    """Standard normals from uniforms, sixteen from sixteen: the first eight give the radius, the last eight the angle.

        r = sqrt(-2 ln(1 - u1))      theta = 2 pi u2      first eight: r cos(theta)      last eight: r sin(theta)

    (NormalFill16 in aten/src/ATen/native/cpu/DistributionTemplates.h. 1 - u1 is never 0.)
    """
    uniforms = uniforms.reshape(-1, 2, 8)
    log, sine_and_cosine = _FUNCTIONS[uniforms.dtype]
    radius = np.sqrt(-2 * log(1 - uniforms[:, 0]))
    sine, cosine = sine_and_cosine(uniforms.dtype.type(2 * math.pi) * uniforms[:, 1])
    normals = np.empty_like(uniforms)
    np.multiply(radius, cosine, out=normals[:, 0])
    np.multiply(radius, sine, out=normals[:, 1])
    return normals.reshape(-1)


def _float32(*numbers: float) -> Array:
    return np.array(numbers, dtype=np.float32)


#: Coefficients of logf, sinf and cosf in Cephes (S. L. Moshier), the highest power first.
LOG_POLYNOMIAL = _float32(
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
SINE_POLYNOMIAL = _float32(-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COSINE_POLYNOMIAL = _float32(2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)

#: ln 2 and pi / 4 as sums of numbers. All except the last have so few bits that their products below are exact.
LN_2 = _float32(0.693359375, -2.12194440e-4)
QUARTER_PI = _float32(0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)


def _log(x: Array) -> Array:
    """The logarithm of float32 x in (0, 1], as log256_ps in avx_mathfun.h computes it.

    x = 2^e (1 + f), so ln x = e ln 2 + ln(1 + f), and ln(1 + f) = f - f^2 / 2 + f^3 (polynomial in f).
    """
    mantissa, exponent = np.frexp(x)
    below = mantissa < np.float32(math.sqrt(0.5))
    e = (exponent - below).astype(np.float32)
    f = mantissa * below
    f += mantissa - 1  # in [sqrt(1/2) - 1, sqrt(2) - 1)
    square = f * f
    tail = _polynomial(LOG_POLYNOMIAL, f)
    tail *= f
    tail = _fused(tail, square, e * LN_2[1])
    tail -= square / 2
    tail += f
    tail += e * LN_2[0]
    return tail


def _sine_and_cosine(theta: Array) -> tuple[Array, Array]:
    """The sine and the cosine of float32 theta in [0, 2 pi], as sincos256_ps in avx_mathfun.h computes them.

    theta = x + a multiple of pi / 2, with |x| <= pi / 4. Then sin x = x + x^3 (polynomial in x^2), and
    cos x = 1 - x^2 / 2 + x^4 (polynomial in x^2).
    """
    octant = (theta * np.float32(4 / math.pi)).astype(np.int32) + 1
    octant &= ~1
    multiple = octant.astype(np.float32)
    x = theta - multiple * QUARTER_PI[0]
    x -= multiple * QUARTER_PI[1]
    x = _fused(multiple, -QUARTER_PI[2], x)
    square = x * x
    sine = _polynomial(SINE_POLYNOMIAL, square)
    sine *= square
    sine = _fused(sine, x, x)
    cosine = _polynomial(COSINE_POLYNOMIAL, square)
    cosine *= square
    cosine = _fused(cosine, square, square / -2)
    cosine += 1
    return _turned(sine, cosine, octant >> 1)


def _turned(sine: Array, cosine: Array, quarters: Array) -> tuple[Array, Array]:
    """The sine and cosine of an angle turned by so many quarters of a circle; the two arrays are overwritten.

    If the number of quarters is odd, sine and cosine change places; then signs are flipped. Both are done on the
    bits. A choice by np.where would be slow: the processor cannot foresee it, and guesses wrong half of the time.
    """
    sine_bits, cosine_bits = sine.view(np.int32), cosine.view(np.int32)
    exchange = (sine_bits ^ cosine_bits) & -(quarters & 1)
    sine_bits ^= exchange ^ ((quarters & 2) << 30)
    cosine_bits ^= exchange ^ (((quarters + 1) & 2) << 30)
    return sine, cosine


def _polynomial(coefficients: Array, x: Array) -> Array:
    """The polynomial at x by Horner's rule. It rounds as `_fused` does, but widens x and takes memory only once."""
    wide_x = x.astype(np.float64)
    exact = np.empty_like(wide_x)
    y = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        np.multiply(y, wide_x, out=exact)
        exact += coefficient
        y[...] = exact
    return y


def _log1p_float64(x: Array) -> Array:
    return _from_c_library(math.log1p, x)


def _log_float64(x: Array) -> Array:
    return _from_c_library(math.log, x)


def _sine_and_cosine_float64(theta: Array) -> tuple[Array, Array]:
    return _from_c_library(math.sin, theta), _from_c_library(math.cos, theta)


_FUNCTIONS: dict[np.dtype, Any] = {
    np.dtype(np.float32): (_log, _sine_and_cosine),
    np.dtype(np.float64): (_log_float64, _sine_and_cosine_float64),
}


# Checks of what callers pass in


def _described(array: Array) -> str:
    return f"{array.dtype} {array.shape}"


def _checked_seed(seed: Any) -> int:
    number = operator.index(seed) if hasattr(seed, "__index__") and not isinstance(seed, bool) else None
    if number is None or not -(2**63) <= number < 2**64:
        raise InputError(f"seed: found {seed!r}; give an int from -2^63 to 2^64 - 1")
    return number % 2**64


def _checked_dtype(dtype: DTypeLike) -> np.dtype:
    checked = np.dtype(dtype)
    if checked not in _FUNCTIONS:
        raise InputError(f"random numbers: the dtype is {checked}; give float32 or float64")
    return checked


def _checked_number(name: str, value: Real, dtype: DTypeLike) -> float:
    """The value as the dtype holds it. InputError if it is too large for some step of the arithmetic above."""
    limit = float(np.finfo(dtype).max) / 2**32
    if not -limit <= value <= limit:
        raise InputError(f"random numbers: {name} is {value}; give a finite number, at most {limit:.0e} in size")
    return float(np.asarray(value, dtype))


def _checked_std(std: Real, dtype: DTypeLike) -> float:
    if std < 0:
        raise InputError(f"normal: std is {std}; give a number that is not negative")
    return _checked_number("std", std, dtype)


def _checked_probabilities(probabilities: Array) -> Array:
    p = np.asarray(probabilities)
    if p.dtype not in _FUNCTIONS or p.ndim not in (1, 2) or not p.shape[-1]:
        raise InputError(f"multinomial: found {_described(p)}; give probabilities (V) or (B, V) in float32 or float64")
    if not (np.isfinite(p).all() and (p >= 0).all() and (p.sum(axis=-1) > 0).all()):
        raise InputError("multinomial: a probability is negative, infinite or NaN, or all are 0; check the logits")
    return p
