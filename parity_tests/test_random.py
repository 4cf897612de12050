"""TorchGenerator draws what the installed PyTorch's CPU generator draws, bit for bit, and leaves the same state."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import torchgpt
from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.random.masks import draw_keep_mask
from numpygpt.random.torch_generator import TORCH_STATE, GeneratorState, TorchGenerator

#: If PyTorch uses these kernels, it rounds a * b + c once, and draws float32 normals with Cephes' polynomials.
VECTOR_KERNELS = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}

TORCH_DTYPES = {np.float32: torch.float32, np.float64: torch.float64}

SEEDS = st.integers(-(2**63), 2**64 - 1)
SIZES = st.integers(0, 600) | st.lists(st.integers(0, 9), max_size=3).map(tuple)
LARGE_SIZES = st.integers(1, 100_000)
DTYPES = st.sampled_from(list(TORCH_DTYPES))
#: Bounds that are not so small that a product of two of them underflows.
REALS = st.floats(-1e3, 1e3).map(lambda number: number if abs(number) > 1e-200 else 0.0)
INT64 = st.integers(-(2**63), 2**63 - 1)


def memory_to_fill(size: Any, dtype: type, contiguous: bool = True) -> torch.Tensor:
    empty = torch.empty(size, dtype=TORCH_DTYPES[dtype])
    return empty if contiguous else torch.stack([empty, empty], dim=-1)[..., 0]


#: Functions that draw in PyTorch what our method of the same name draws with the same arguments.
IN_TORCH = {
    "random": lambda g, size: torch.rand(size, dtype=torch.float64, generator=g),
    "uniform": lambda g, size, low, high, dtype: memory_to_fill(size, dtype).uniform_(low, high, generator=g),
    "bernoulli": lambda g, p, size: torch.empty(size, dtype=torch.bool).bernoulli_(p, generator=g),
    "normal": lambda g, size, mean, std, dtype, contiguous: memory_to_fill(size, dtype, contiguous).normal_(
        mean, std, generator=g
    ),
    "exponential": lambda g, size, dtype: memory_to_fill(size, dtype).exponential_(generator=g),
    "multinomial": lambda g, probabilities, num_samples, replacement: torch.multinomial(
        torch.from_numpy(probabilities), num_samples, replacement, generator=g
    ),
    "randint": lambda g, low, high, size: torch.randint(
        low, high, size if isinstance(size, tuple) else (size,), generator=g
    ),
    "random_int64": lambda g: torch.empty((), dtype=torch.int64).random_(generator=g),
    "randperm": lambda g, n: torch.randperm(n, generator=g),
}


def increasing_pairs(numbers: st.SearchStrategy, unique: bool) -> st.SearchStrategy:
    return st.lists(numbers, min_size=2, max_size=2, unique=unique).map(sorted)


@st.composite
def multinomial_arguments(draw: Any) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (*draw(st.sampled_from([(), (1,), (4,)])), draw(st.integers(1, 300)))
    kept = rng.random(shape) < draw(st.sampled_from([0.1, 0.9, 1.0]))
    kept[..., 0] = True
    probabilities = (rng.exponential(size=shape) * kept).astype(draw(DTYPES))
    replacement = draw(st.booleans())
    most = 20 if replacement else int(np.count_nonzero(probabilities, axis=-1).min())
    return {
        "probabilities": probabilities,
        "num_samples": draw(st.integers(1, most)),
        "replacement": replacement,
    }


def arguments_of_each_method(sizes: st.SearchStrategy) -> dict[str, st.SearchStrategy]:
    def with_bounds(bounds: list, **others: Any) -> dict[str, Any]:
        return {"low": bounds[0], "high": bounds[1], **others}

    real_bounds = increasing_pairs(REALS, unique=False) | REALS.map(lambda high: [-abs(high), abs(high)])
    whole_bounds = increasing_pairs(INT64, unique=True) | st.builds(
        lambda low, span: [low, low + span],
        st.integers(-(10**6), 10**6),
        st.sampled_from([1, 2, 50257, 2**28 - 1, 2**28, 2**28 + 1, 2**32, 2**62]),
    )
    return {
        "random": st.fixed_dictionaries({"size": sizes}),
        "uniform": st.builds(with_bounds, real_bounds, size=sizes, dtype=DTYPES),
        "bernoulli": st.fixed_dictionaries({"p": st.floats(0, 1), "size": sizes}),
        "normal": st.fixed_dictionaries(
            {
                "size": sizes,
                "mean": st.just(0.0) | REALS,
                "std": st.just(1.0) | REALS.map(abs),
                "dtype": DTYPES,
                "contiguous": st.booleans(),
            }
        ),
        "exponential": st.fixed_dictionaries({"size": sizes, "dtype": DTYPES}),
        "multinomial": multinomial_arguments(),
        "randint": st.builds(with_bounds, whole_bounds, size=sizes),
        "random_int64": st.just({}),
        "randperm": st.fixed_dictionaries({"n": sizes.filter(lambda size: isinstance(size, int))}),
    }


#: The name of a method, and arguments for it.
DRAWS = st.one_of(
    *(st.tuples(st.just(method), arguments) for method, arguments in arguments_of_each_method(SIZES).items())
)


def generators(seed: int) -> tuple[TorchGenerator, torch.Generator]:
    """Our generator and PyTorch's, with one seed and after one draw. From then on their states agree in every byte."""
    ours, theirs = TorchGenerator(seed), torch.Generator().manual_seed(seed)
    assert_same_draw(ours, theirs, "random_int64", {})
    return ours, theirs


def assert_same_draw(ours: TorchGenerator, theirs: torch.Generator, method: str, arguments: dict) -> None:
    drawn = np.asarray(getattr(ours, method)(**arguments))
    expected = IN_TORCH[method](theirs, **arguments).contiguous().numpy()
    assert drawn.dtype == expected.dtype
    assert drawn.shape == expected.shape
    if VECTOR_KERNELS or method not in {"uniform", "normal"}:
        np.testing.assert_array_equal(bits(drawn), bits(expected))
    else:
        assert_nearly_equal(drawn, expected, arguments)


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, array.itemsize)


def assert_nearly_equal(drawn: np.ndarray, expected: np.ndarray, arguments: dict) -> None:
    """They agree nearly: without vector kernels an angle up to 2 pi may differ by an ulp, at a radius up to 9."""
    largest = max(abs(arguments[name]) for name in ("low", "high", "mean", "std") if name in arguments)
    one_ulp = np.finfo(drawn.dtype).eps * largest
    assert np.all(np.abs(drawn.astype(float) - expected) <= 2 * np.pi * 9 * one_ulp)


def assert_same_state(ours: TorchGenerator, theirs: torch.Generator) -> None:
    np.testing.assert_array_equal(ours.to_torch_state(), theirs.get_state().numpy())


@pytest.mark.long_run
@given(SEEDS, st.lists(DRAWS, max_size=8))
def test_mixed_draws_stay_aligned(seed, sequence):
    ours, theirs = generators(seed)
    for method, arguments in sequence:
        assert_same_draw(ours, theirs, method, arguments)
        assert_same_state(ours, theirs)


@pytest.mark.long_run
@pytest.mark.parametrize("method", IN_TORCH)
@given(SEEDS, st.data())
def test_large_draws(method, seed, data):
    ours, theirs = generators(seed)
    assert_same_draw(ours, theirs, method, data.draw(arguments_of_each_method(LARGE_SIZES)[method]))
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_many_normals(dtype):
    """There are so many that a rounding which seldom differs would show."""
    arguments = {"size": 150_001, "mean": 0.0, "std": 1.0, "dtype": dtype, "contiguous": True}
    assert_same_draw(*generators(10), "normal", arguments)


@pytest.mark.parametrize("method", ["random", "exponential", "bernoulli"])
def test_an_int_is_a_size_of_one_axis(method):
    arguments = {"p": 0.5} if method == "bernoulli" else {}
    in_one_axis = getattr(TorchGenerator(5), method)(size=7, **arguments)
    np.testing.assert_array_equal(in_one_axis, getattr(TorchGenerator(5), method)(size=(7,), **arguments))


@given(SEEDS)
@example(-1)
@example(2**63)
@example(2**32 + 123)
def test_seeds(seed):
    ours, theirs = TorchGenerator(seed), torch.Generator().manual_seed(seed)
    assert ours.seed == theirs.initial_seed()
    assert ours.random_int64() == IN_TORCH["random_int64"](theirs).item()


def test_without_a_seed_each_generator_is_another():
    assert TorchGenerator().random_int64() != TorchGenerator().random_int64()


@pytest.mark.parametrize(("dtype", "low"), [(np.float32, 1e-30), (np.float64, 1e-79)])
def test_a_tiny_lower_bound_decides_ties_of_rounding(dtype, low):
    arguments = {"size": 1000, "low": low, "high": 0.75, "dtype": dtype}
    assert_same_draw(*generators(4), "uniform", arguments)


def test_a_uniform_rounded_up_to_its_upper_bound_becomes_the_lower_bound():
    ours, theirs = generators(3)
    arguments = {"size": 1000, "low": 1e8, "high": 1e8 + 16, "dtype": np.float32}
    assert_same_draw(ours, theirs, "uniform", arguments)
    assert ours.uniform(1000, 1e8, 1e8 + 16).max() < 1e8 + 16


def generators_about_to_draw(words: np.ndarray) -> tuple[TorchGenerator, torch.Generator]:
    """Our generator and PyTorch's, whose next 32-bit draws are these."""
    key = np.zeros(624, np.uint32)
    key[1 : 1 + len(words)] = untempered(words)
    ours, theirs = TorchGenerator(0), torch.Generator()
    ours.set_state(GeneratorState(0, key, 1, None))
    theirs.set_state(torch.from_numpy(ours.to_torch_state()))
    return ours, theirs


def untempered(words: np.ndarray) -> np.ndarray:
    """The words of the key from which the engine makes these outputs; this undoes each of the engine's four steps."""
    words = words ^ (words >> np.uint32(18))
    words ^= (words << np.uint32(15)) & np.uint32(0xEFC60000)
    undone = words
    for _ in range(5):
        undone = words ^ ((undone << np.uint32(7)) & np.uint32(0x9D2C5680))
    words = undone
    for _ in range(3):
        undone = words ^ (undone >> np.uint32(11))
    return undone


#: The ends of widths: of the words that are drawn, of what float64 holds, of int64, and of unsigned 64 bits.
SPAN_EDGES = [2**bits + step for bits in (8, 16, 24, 28, 31, 32, 53, 63) for step in (-1, 0, 1)] + [1, 2, 2**64 - 1]
LOWS = [0, 1, -1, -7, 2**31, -(2**31), 2**32 - 1, -(2**53), 2**62, -(2**62), -(2**63)]


@pytest.mark.parametrize("span", SPAN_EDGES, ids=hex)
def test_whole_numbers_at_the_edges_of_each_width(span):
    """Every low is tried that leaves room below 2^63. Numbers and states agree, so as many words were taken."""
    lows = [low for low in LOWS if low + span < 2**63]
    if span < 2**64 - 1:
        lows.append(2**63 - 1 - span)
    assert lows
    ours, theirs = generators(span % 2**32)
    for low in lows:
        assert_same_draw(ours, theirs, "randint", {"low": low, "high": low + span, "size": 50})
        assert_same_state(ours, theirs)


@pytest.mark.parametrize("span", SPAN_EDGES, ids=hex)
def test_whole_numbers_from_words_at_the_edges_of_the_range(span):
    """The words are 0, the largest, and multiples of the range and their neighbors, in both halves of 64-bit draws."""
    largest = 2**32 - 1 if span < 2**28 else 2**64 - 1
    edges = {0, 1, largest - 1, largest, largest // span * span, largest // span * span - 1, span - 1, span, 2 * span}
    drawn = [edge for edge in sorted(edges) if 0 <= edge <= largest]
    halves = [[edge] if largest < 2**32 else [edge >> 32, edge % 2**32] for edge in drawn]
    words = np.array([half for pair in halves for half in pair], np.uint32)
    for low in (0, -(2**63)):
        if low + span < 2**63:
            arguments = {"low": low, "high": low + span, "size": len(drawn)}
            ours, theirs = generators_about_to_draw(words)
            expected = [low + edge % span for edge in drawn]
            assert ours.randint(**arguments).tolist() == expected
            assert IN_TORCH["randint"](theirs, **arguments).tolist() == expected


@given(st.integers(0, 2**32), DTYPES)
def test_normals_from_uniforms_at_the_edges(choice, dtype):
    """The uniforms are zero, the largest, and those near eighths of the circle or of the logarithm's range."""
    edges = np.add.outer(np.arange(9) * 2**21, np.arange(-3, 4)).ravel() % 2**24
    words = np.random.default_rng(choice).choice(edges.astype(np.uint32), 608)
    size = 608 if dtype is np.float32 else 304
    arguments = {"size": size, "mean": 0.0, "std": 1.0, "dtype": dtype, "contiguous": True}
    assert_same_draw(*generators_about_to_draw(words), "normal", arguments)


@pytest.mark.parametrize("p", [0.0, 5e-324, 2.0**-54, 2.0**-53])
@pytest.mark.parametrize("low_word", [0, 1])
def test_bernoulli_at_the_smallest_probabilities_and_uniforms(p, low_word):
    both = generators_about_to_draw(np.array([0, low_word], np.uint32))
    assert_same_draw(*both, "bernoulli", {"p": p, "size": 1})


@pytest.mark.parametrize("method", ["uniform", "normal"])
@pytest.mark.parametrize("size", [7, (3, 41)])
def test_numbers_drawn_into_an_array_are_those_of_a_new_one(method, size):
    out = np.zeros(size)
    filled = getattr(TorchGenerator(5), method)(size, out=out)
    assert filled is out
    np.testing.assert_array_equal(out, getattr(TorchGenerator(5), method)(size))


def test_what_is_not_contiguous_is_filled_in_the_order_of_its_memory():
    transposed = torch.empty(30, 20).T
    theirs = torch.Generator().manual_seed(6)
    ours = TorchGenerator(6)
    np.testing.assert_array_equal(transposed.uniform_(generator=theirs).T, ours.uniform((30, 20)))
    np.testing.assert_array_equal(transposed.normal_(generator=theirs).T, ours.normal((30, 20), contiguous=False))
    assert_same_state(ours, theirs)


def test_dropout_keeps_where_bernoulli_is_true():
    torch.manual_seed(7)
    kept = torch.nn.functional.dropout(torch.ones(40, 50), 0.1) != 0
    np.testing.assert_array_equal(kept, TorchGenerator(7).bernoulli(1 - 0.1, (40, 50)))


@given(SEEDS, st.lists(st.integers(0, 9), min_size=1, max_size=3), st.floats(0, 1, exclude_max=True))
def test_a_mask_is_the_same_by_booleans_and_by_uniforms(seed, shape, drop_rate):
    """`draw_keep_mask` asks TorchGenerator for booleans, and a source without `bernoulli` for uniforms."""
    by_booleans, by_uniforms = TorchGenerator(seed), TorchGenerator(seed)
    without_bernoulli = SimpleNamespace(random=by_uniforms.random)
    masks = [draw_keep_mask(rng, shape, drop_rate) for rng in (by_booleans, without_bernoulli)]
    np.testing.assert_array_equal(*masks)
    assert (masks[0] is None) == (drop_rate == 0)
    np.testing.assert_array_equal(by_booleans.to_torch_state(), by_uniforms.to_torch_state())


@given(
    seed=SEEDS,
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 3),
    n_layers=st.integers(1, 3),
    vocab_size=st.integers(1, 30),
    context_length=st.integers(1, 20),
    qkv_bias=st.booleans(),
    tie_weights=st.booleans(),
    bias=st.booleans(),
)
def test_a_model_holds_the_weights_of_pytorchs_and_draws_on_from_there(seed, heads, head_dim, **sizes):
    config = GPTConfig(emb_dim=heads * head_dim, n_heads=heads, drop_rate=0.0, **sizes)
    rng = TorchGenerator(seed)
    weights = GPTModel(config, seed=rng).state_dict()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin = torchgpt.GPTModel(config)
        np.testing.assert_array_equal(rng.to_torch_state(), torch.get_rng_state())
    assert list(weights) == list(twin.state_dict())
    for name, tensor in twin.state_dict().items():
        if VECTOR_KERNELS:
            np.testing.assert_array_equal(bits(weights[name]), bits(tensor.numpy()), name)
        else:
            assert_nearly_equal(weights[name], tensor.numpy(), {"std": 1.0})


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_batches_of_a_dataloader(shuffle):
    torch.manual_seed(8)
    loader = torch.utils.data.DataLoader(range(11), batch_size=3, shuffle=shuffle)
    rng = TorchGenerator(8)
    for _ in range(2):
        rng.random_int64()
        order = TorchGenerator(rng.random_int64()).randperm(11) if shuffle else np.arange(11)
        np.testing.assert_array_equal(torch.cat(list(loader)), order)
    np.testing.assert_array_equal(rng.to_torch_state(), torch.get_rng_state())


@given(SEEDS, st.lists(DRAWS, max_size=2), DRAWS)
def test_a_state_goes_over_to_torch_and_back(seed, before, after):
    ours = TorchGenerator(seed)
    for method, arguments in before:
        getattr(ours, method)(**arguments)
    theirs = torch.Generator().set_state(torch.from_numpy(ours.to_torch_state()))
    back = TorchGenerator.from_torch_state(theirs.get_state())
    assert back.seed == theirs.initial_seed() == ours.seed
    assert_same_draw(back, theirs, *after)
    getattr(ours, after[0])(**after[1])
    np.testing.assert_array_equal(ours.to_torch_state(), back.to_torch_state())


def test_a_normal_that_waits_goes_with_the_state():
    ours, theirs = generators(11)
    arguments = {"size": 3, "mean": 0.0, "std": 1.0, "dtype": np.float64, "contiguous": True}
    assert_same_draw(ours, theirs, "normal", arguments)
    copy = TorchGenerator(0)
    copy.set_state(ours.get_state())
    for generator in (ours, copy, TorchGenerator.from_torch_state(theirs.get_state())):
        torch_copy = torch.Generator().set_state(theirs.get_state())
        assert_same_draw(generator, torch_copy, "normal", arguments)


def test_the_state_of_an_unused_torch_generator():
    theirs = torch.Generator().manual_seed(9)
    assert_same_draw(TorchGenerator.from_torch_state(theirs.get_state()), theirs, "randperm", {"n": 20})


@given(SEEDS, st.lists(DRAWS, max_size=2), DRAWS)
def test_a_state_set_again_repeats_the_draws(seed, before, after):
    first, second = TorchGenerator(seed), TorchGenerator(seed + 1 if seed < 0 else seed - 1)
    for method, arguments in before:
        getattr(first, method)(**arguments)
    state = first.get_state()
    method, arguments = after
    expected = getattr(first, method)(**arguments)
    for generator in (first, second):
        generator.set_state(state)
        np.testing.assert_array_equal(getattr(generator, method)(**arguments), expected)
        assert generator.seed == first.seed


BAD_SEEDS = [True, 1.0, 1.5, float("nan"), "123", 2**64, -(2**63) - 1, np.True_, np.float32(1)]


@pytest.mark.parametrize("seed", BAD_SEEDS, ids=repr)
def test_a_seed_that_is_no_int_is_refused(seed):
    with pytest.raises(InputError, match="seed"):
        TorchGenerator(seed)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("bernoulli", {"p": -0.1, "size": 1}),
        ("bernoulli", {"p": 1.1, "size": 1}),
        ("bernoulli", {"p": float("nan"), "size": 1}),
        ("uniform", {"size": 1, "low": 2, "high": 1}),
        ("uniform", {"size": 1, "high": float("inf")}),
        ("uniform", {"size": 1, "low": float("nan")}),
        ("uniform", {"size": 1, "dtype": np.float16}),
        ("uniform", {"size": 3, "out": np.zeros(4)}),
        ("normal", {"size": (3, 4), "out": np.zeros((4, 3)).T}),
        ("normal", {"size": 1, "std": -1}),
        ("normal", {"size": 1, "std": float("nan")}),
        ("normal", {"size": 20, "mean": float("inf")}),
        ("exponential", {"size": 1, "dtype": np.int64}),
        ("randint", {"low": 3, "high": 3, "size": 1}),
        ("randint", {"low": 0, "high": 2**63, "size": 1}),
        ("randint", {"low": -(2**63) - 1, "high": 0, "size": 1}),
        ("randint", {"low": 4, "high": 3, "size": 1}),
        ("randperm", {"n": -1}),
        ("randperm", {"n": 2**31}),
        ("multinomial", {"probabilities": np.array([0.5, -0.1])}),
        ("multinomial", {"probabilities": np.array([0.5, np.nan])}),
        ("multinomial", {"probabilities": np.array([0.5, np.inf])}),
        ("multinomial", {"probabilities": np.array([[0.5, 0.5], [0.0, 0.0]])}),
        ("multinomial", {"probabilities": np.array([1, 2])}),
        ("multinomial", {"probabilities": np.ones((2, 3, 4))}),
        ("multinomial", {"probabilities": np.ones(0)}),
        ("multinomial", {"probabilities": np.array([0.5, 0.0]), "num_samples": 2}),
        ("multinomial", {"probabilities": np.ones(2), "num_samples": 0}),
        ("multinomial", {"probabilities": np.ones(2), "num_samples": 0, "replacement": True}),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_and_draw_nothing(method, arguments):
    rng = TorchGenerator(1)
    with pytest.raises(InputError, match=method if method == "multinomial" else "give"):
        getattr(rng, method)(**arguments)
    np.testing.assert_array_equal(rng.to_torch_state(), TorchGenerator(1).to_torch_state())


@pytest.mark.parametrize(
    "change",
    [
        {"key": np.zeros(623, np.uint32)},
        {"key": np.zeros(624)},
        {"position": 0},
        {"position": 625},
        {"seed": -(2**64)},
    ],
    ids=str,
)
def test_a_state_that_is_none_is_refused_and_changes_nothing(change):
    rng = TorchGenerator(1)
    with pytest.raises(InputError):
        rng.set_state(TorchGenerator(2).get_state()._replace(**change))
    np.testing.assert_array_equal(rng.to_torch_state(), TorchGenerator(1).to_torch_state())


def with_field(name: str, value: int) -> np.ndarray:
    record = TorchGenerator(1).to_torch_state().view(TORCH_STATE).copy()
    record[name] = value
    return record.view(np.uint8)


@pytest.mark.parametrize(
    "state",
    [
        np.zeros(16, np.uint8),
        np.zeros(5056, np.int8),
        with_field("seeded", 0),
        with_field("left", 0),
        with_field("left", 7),
    ],
    ids=["too short", "not bytes", "not seeded", "past its end", "inconsistent"],
)
def test_bytes_that_are_no_torch_state_are_refused(state):
    with pytest.raises(InputError, match="state"):
        TorchGenerator.from_torch_state(state)
