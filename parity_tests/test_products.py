"""Matrix products in parts on several threads are the products: of rows, columns or heads, in any memory layout.

Attention whose heads are shared among threads has the same bits.
"""

import numpy as np
import pytest

from numpygpt import parallel, process
from numpygpt.ops import flash_attention
from parity_tests.command import python

SHAPES = {
    "more rows": ((7, 5), (5, 3)),
    "more columns": ((3, 5), (5, 11)),
    "one row": ((1, 5), (5, 9)),
    "heads": ((2, 9, 4, 3), (2, 9, 3, 5)),
    "fewer heads than threads": ((4, 1, 4, 3), (4, 1, 3, 5)),
    "neither": ((1, 1, 4, 3), (1, 1, 3, 5)),
}
LAYOUTS = {
    "as made": lambda array: array,
    "transposed": lambda array: np.ascontiguousarray(array.mT).mT,
    "from the end": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
    "heads slower": lambda array: np.ascontiguousarray(array.swapaxes(0, -2)).swapaxes(0, -2),
}


@pytest.fixture
def in_parts(monkeypatch):
    """Compute even small products in parts, as if BLAS had one thread, and count the parts."""
    parts = []
    multiply = parallel._parts
    monkeypatch.setattr(parallel, "SPLIT_FROM", 1)
    monkeypatch.setattr(parallel, "_blas_has_one_thread", lambda: True)
    monkeypatch.setattr(parallel, "_parts", lambda *arguments: parts.extend(multiply(*arguments)) or parts[:])
    return parts


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=list(SHAPES))
def test_a_product_in_parts_is_the_product(in_parts, monkeypatch, shapes, layout, threads, dtype):
    """The factors hold whole numbers, whose sums are exact in any order."""
    monkeypatch.setattr(parallel, "number_of_threads", lambda: threads)
    a, b = (layout(np.random.default_rng(0).integers(-9, 10, shape).astype(dtype)) for shape in shapes)
    y = parallel.product(a, b)
    assert len(in_parts) == threads
    assert np.array_equal(y, a @ b)
    assert y.dtype == dtype
    assert y.flags.c_contiguous


@pytest.mark.parametrize(("threads", "smallest", "one_thread"), [(1, 1, True), (2, 10**9, True), (2, 1, False)])
def test_a_product_is_whole_on_one_thread_if_it_is_small_or_if_blas_has_threads(
    in_parts, monkeypatch, threads, smallest, one_thread
):
    monkeypatch.setattr(parallel, "number_of_threads", lambda: threads)
    monkeypatch.setattr(parallel, "SPLIT_FROM", smallest)
    monkeypatch.setattr(parallel, "_blas_has_one_thread", lambda: one_thread)
    a, b = np.random.default_rng(0).integers(-9, 10, (2, 6, 6)).astype(float)
    assert np.array_equal(parallel.product(a, b), a @ b)
    assert not in_parts


@pytest.mark.parametrize(("smallest", "expected"), [(6**3, 2), (6**3 // 2, 4), (1, 2 * 6**3)])
def test_a_product_has_no_more_parts_than_its_work_is_worth(in_parts, monkeypatch, smallest, expected):
    monkeypatch.setattr(parallel, "number_of_threads", lambda: 1000)
    monkeypatch.setattr(parallel, "SPLIT_FROM", smallest)
    a, b = np.random.default_rng(0).integers(-9, 10, (2, 6, 6)).astype(float)
    assert np.array_equal(parallel.product(a, b), a @ b)
    assert len(in_parts) == expected


def test_a_program_may_leave_the_products_to_our_threads():
    """This runs in a process of its own, because it holds for a whole process. The factors hold whole numbers again."""
    done = python(
        "-c",
        "import numpy as np\n"
        "from numpygpt import parallel, process\n"
        "parallel.number_of_threads = lambda: 2\n"
        "before = process.number_of_threads()\n"
        "parallel.use_own_threads()\n"
        "a = np.random.default_rng(0).integers(-9, 10, (512, 512)).astype(np.float32)\n"
        "print(before, process.number_of_threads(), np.array_equal(parallel.product(a, a), a @ a))\n",
        env={"OPENBLAS_NUM_THREADS": "2"},
    )
    assert done.stderr == ""
    assert done.stdout.split()[1:] == ["1", "True"]
    assert process.number_of_threads() >= 1


def test_flash_attention_has_the_same_bits_however_the_heads_are_shared(monkeypatch):
    """Some heads a thread, more threads than heads, and all heads in one share."""
    rng = np.random.default_rng(0)
    B, H, T, S, K = 2, 3, 7, 9, 4
    queries, keys, values = (rng.standard_normal((B, H, length, K), np.float32) for length in (T, S, S))
    keep, d_context = rng.random((B, H, T, S)) < 0.8, rng.standard_normal((B, H, T, K), np.float32)

    def computed(threads: int, blas_has_one_thread: bool) -> list[np.ndarray]:
        monkeypatch.setattr(parallel, "number_of_threads", lambda: threads)
        monkeypatch.setattr(parallel, "_blas_has_one_thread", lambda: blas_has_one_thread)
        assert len(parallel.shares(H)) == (min(threads, H) if blas_has_one_thread else 1)
        context, saved = flash_attention.forward(queries, keys, values, keep=keep, drop_rate=0.2, tile=4)
        return [context, saved.highest, saved.total, *flash_attention.backward(d_context, saved)]

    alone = computed(1, True)
    for threads, blas_has_one_thread in [(2, True), (3, True), (8, True), (2, False)]:
        shared = computed(threads, blas_has_one_thread)
        assert all(np.array_equal(a, b) for a, b in zip(alone, shared, strict=True))
