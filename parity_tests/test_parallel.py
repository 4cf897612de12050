"""Blocks of rows on several threads: each row once, results in order, the same bits, errors raised, no deadlock."""

import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpygpt import parallel
from numpygpt.ops import gelu, layer_norm, softmax
from parity_tests.command import python
from parity_tests.small_models import arrays_in

THREADS = (1, 2, 3, 8)


@pytest.fixture
def block_of_8_bytes(monkeypatch):
    """Blocks are so small that each row of one float64 is a block."""
    monkeypatch.setattr(parallel, "BLOCK_BYTES", 8)


def use_threads(monkeypatch, threads):
    monkeypatch.setattr(parallel, "number_of_threads", lambda: threads)


@pytest.mark.long_run
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 200))
def test_blocks_cover_every_row_once_in_order_whatever_the_threads(rows, columns, block_bytes):
    x = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(parallel, "BLOCK_BYTES", block_bytes)
        blocks = {}
        for threads in THREADS:
            use_threads(monkeypatch, threads)
            y = np.zeros_like(x)
            blocks[threads] = parallel.over_rows(lambda x, y: np.copyto(y, x + 1) or x.copy(), x, y)
            assert np.array_equal(np.concatenate(blocks[threads]), x)
            assert np.array_equal(y, x + 1)
        assert len(blocks[1]) == max(1, min(rows, round(x.nbytes / block_bytes)))
        lengths = [[len(block) for block in blocks[threads]] for threads in THREADS]
        assert lengths == [lengths[0]] * len(THREADS)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 5))
def test_leading_axes_are_taken_as_one(leading, columns):
    x = np.arange(np.prod(leading) * columns, dtype=float).reshape(*leading, columns)
    y = np.zeros_like(x)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(parallel, "BLOCK_BYTES", 8)
        shapes = parallel.over_rows(lambda x, y: np.copyto(y, 2 * x) or x.shape, x, y)
    assert shapes == [(1, columns)] * (x.size // columns)
    assert np.array_equal(y, 2 * x)


@pytest.mark.usefixtures("block_of_8_bytes")
@pytest.mark.parametrize("threads", THREADS)
def test_results_are_in_block_order_though_blocks_end_in_any_order(monkeypatch, threads):
    """This is tried many times, with fewer, as many and more blocks than threads. Blocks take different times."""
    use_threads(monkeypatch, threads)
    rng = np.random.default_rng(threads)
    ended_in_another_order = 0
    for _ in range(60):
        rows = int(rng.integers(2, 12))
        seconds, ended = rng.random(rows) / 2000, []

        def block(row, seconds=seconds, ended=ended):
            number = int(row[0, 0])
            time.sleep(seconds[number])
            ended.append(number)
            return number

        assert parallel.over_rows(block, np.arange(float(rows))[:, np.newaxis]) == list(range(rows))
        assert sorted(ended) == list(range(rows))
        ended_in_another_order += ended != sorted(ended)
    assert (ended_in_another_order > 0) == (threads > 1)


@pytest.mark.parametrize("operation", [gelu, softmax, layer_norm], ids=lambda operation: operation.__name__)
def test_an_operation_in_many_blocks_has_the_same_bits_on_any_number_of_threads(monkeypatch, operation):
    """layer_norm adds up partial sums of its blocks."""
    monkeypatch.setattr(parallel, "BLOCK_BYTES", 256)
    rng = np.random.default_rng(0)
    x, d_y = rng.standard_normal((2, 3, 50, 16)).astype(np.float32)
    parameters = rng.standard_normal((2, 16)).astype(np.float32) if operation is layer_norm else ()
    results = set()
    for threads in (*THREADS, *THREADS):
        use_threads(monkeypatch, threads)
        output, saved = operation.forward(x, *parameters)
        gradients = operation.backward(d_y, saved)
        results.add(b"".join(array.tobytes() for array in arrays_in((output, gradients))))
    assert len(results) == 1


@pytest.mark.usefixtures("block_of_8_bytes")
def test_two_threads_work_at_the_same_time(monkeypatch):
    use_threads(monkeypatch, 2)
    meeting = threading.Barrier(2, timeout=60)
    workers = parallel.over_rows(lambda block: meeting.wait() >= 0 and threading.get_ident(), np.zeros((2, 1)))
    assert len(set(workers)) == 2


@pytest.mark.usefixtures("block_of_8_bytes")
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("wrong", [0, 2, 4])
def test_an_error_in_a_block_is_raised_and_the_next_call_works(monkeypatch, threads, wrong):
    use_threads(monkeypatch, threads)
    rows = np.arange(5.0)[:, np.newaxis] - wrong
    with pytest.raises(ZeroDivisionError):
        parallel.over_rows(lambda row: 1 // int(row[0, 0]), rows)
    assert parallel.over_rows(lambda row: int(row[0, 0]), rows) == [row - wrong for row in range(5)]


def test_a_block_may_have_blocks_of_its_own():
    """Every thread has a block that waits for inner blocks. A new Python runs this, and ends after a minute."""
    code = """if True:
        import faulthandler
        import numpy as np
        from numpygpt import parallel
        faulthandler.dump_traceback_later(60, exit=True)
        parallel.BLOCK_BYTES = 8
        rows = np.arange(24.0).reshape(8, 3)
        def total(row):
            return sum(parallel.over_rows(lambda inner: float(inner[0, 0]), row.reshape(3, 1)))
        for threads in (1, 2, 3, 8, 20):
            parallel.number_of_threads = lambda: threads
            assert parallel.over_rows(total, rows) == rows.sum(axis=1).tolist()
        print("done")
    """
    done = python("-c", code)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


def test_a_forked_process_has_threads_of_its_own():
    """A new Python runs this, because a fork of this one would have only a part of what PyTorch started."""
    code = """if True:
        import os
        import signal
        import numpy as np
        from numpygpt import parallel
        parallel.BLOCK_BYTES, parallel.number_of_threads = 8, lambda: 3
        rows = np.arange(20.0)[:, np.newaxis]
        def result():
            return parallel.over_rows(lambda row: int(row[0, 0]), rows) == list(range(20))
        assert result()
        for _ in range(3):
            child = os.fork()
            if not child:
                signal.alarm(60)  # ends a child that waits for threads that only its parent has
                os._exit(0 if result() and result() else 1)
            assert os.waitpid(child, 0)[1] == 0
            assert result()
        print("done")
    """
    done = python("-W", "ignore::DeprecationWarning", "-c", code)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


@pytest.mark.parametrize(
    ("setting", "threads"), [("3", 3), ("1", 1), ("0", None), ("", None), ("many", None), ("100000", 4)]
)
def test_omp_num_threads_sets_the_number_of_threads(monkeypatch, setting, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    found = parallel.number_of_threads()
    if threads is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
        threads = parallel.number_of_threads()
    assert found == threads >= 1


# One item ahead


@pytest.mark.parametrize("threads", [1, 2])
def test_items_come_in_order_and_one_is_made_ahead(monkeypatch, threads):
    monkeypatch.setattr(parallel, "number_of_threads", lambda: threads)
    made, second = [], threading.Event()

    def items():
        for number in range(4):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    coming = parallel.ahead(items())
    assert next(coming) == 0
    assert second.wait(timeout=20 if threads > 1 else 0) == (threads > 1)
    assert list(coming) == [1, 2, 3]
    assert made == [0, 1, 2, 3]


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_is_raised_at_the_turn_of_its_item(monkeypatch, threads):
    monkeypatch.setattr(parallel, "number_of_threads", lambda: threads)

    def items():
        yield 0
        raise ValueError("no second item")

    coming = parallel.ahead(items())
    assert next(coming) == 0
    with pytest.raises(ValueError, match="no second item"):
        next(coming)


def test_the_blocks_of_layer_norm_add_up_to_the_sum_of_all_rows(monkeypatch):
    """The gradient of the shift is a sum of whole numbers, which is exact in any order."""
    monkeypatch.setattr(parallel, "BLOCK_BYTES", 64)
    rng = np.random.default_rng(7)
    x, d_y = rng.standard_normal((7, 8)), rng.integers(-9, 10, (7, 8)).astype(np.float64)
    _, saved = layer_norm.forward(x, np.ones(8), np.zeros(8))
    assert np.array_equal(layer_norm.backward(d_y, saved).shift, d_y.sum(axis=0))
