"""Work on all cores: a function over blocks of rows, and matrix products in parts.

Element-wise work on a large array is bound by memory: each NumPy operation reads and writes the whole array. Done on a
block of rows that fits in a core's cache, a chain of operations touches memory once; done on several blocks at a time,
it uses every core, because NumPy releases the interpreter's lock while it computes.

The blocks depend on the arrays' sizes alone, never on the number of threads, so the result is the same bit for bit on
any machine, also where partial sums of the blocks are added up.

The threads of BLAS wait for each other actively. That costs nothing on a quiet machine, but beside one busy process it
makes a training step two to five times slower. A program may therefore call `use_own_threads`: BLAS then computes on
the thread that calls it, and `product` gives each of our threads, which wait asleep, a part of the result.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from numpygpt import process
from numpygpt.shapes import Array

#: Bytes of one operand's block. Smaller, and threads spend their time handing the interpreter's lock to each other;
#: larger, and blocks leave the cache. On two cores GELU of 512 x 3072 takes 5.3 ms at 128 KiB, 3.4 at 512, 8.6 at 2048
#: (one thread: 10).
BLOCK_BYTES = 512 * 1024

#: Multiplications of the smallest product that is split: a smaller one is over before a thread has woken up.
SPLIT_FROM = 2**22

#: Into at most so many parts the smallest product is split, and a larger one into more in proportion.
FEWEST_PARTS = 2

_this_thread = threading.local()


def number_of_threads() -> int:
    """Threads for our work: one for each core that the process may use, or fewer if OMP_NUM_THREADS says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(limit), cores) if limit.isdecimal() and int(limit) > 0 else cores


@cache
def _workers(threads: int, process_id: int) -> ThreadPoolExecutor:
    """The threads, started on first use; a forked child (another process id) has none and starts its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="numpygpt-worker")


def in_parallel(function: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
    """[function(part) for part in parts], the parts shared equally among our threads and the caller's own.

    A call from within `function` does all its parts one after another, because the other threads have parts already.
    Each thread has the caller's context, and so its np.errstate.
    """
    threads = 1 if getattr(_this_thread, "has_a_part", False) else min(number_of_threads(), len(parts))
    if threads <= 1:
        return [function(part) for part in parts]

    def all_of(share: slice) -> list[Any]:
        _this_thread.has_a_part = True
        try:
            return [function(part) for part in parts[share]]
        finally:
            _this_thread.has_a_part = False

    workers = _workers(threads - 1, os.getpid())
    own, *others = _slices(len(parts), threads)
    waiting = [workers.submit(copy_context().run, all_of, share) for share in others]
    try:
        results = all_of(own)
    finally:
        rest = [future.exception() or future.result() for future in waiting]
    for share in rest:
        if isinstance(share, BaseException):
            raise share
        results += share
    return results


def ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items in their order. While the caller uses one, another thread makes the next.

    If there is one thread only, each item is made when it is asked for. An error while an item is made is raised at the
    item's turn.
    """
    if number_of_threads() == 1:
        yield from items
        return
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="numpygpt-ahead") as maker:
        coming = maker.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = maker.submit(next, items, end)
            yield item


def _slices(length: int, parts: int) -> list[slice]:
    """`parts` slices of nearly equal lengths, one after another."""
    ends = [length * part // parts for part in range(parts + 1)]
    return [slice(*pair) for pair in pairwise(ends)]


def over_rows(function: Callable[..., Any], *arrays: Array) -> list[Any]:
    """Call `function(*blocks)` with the same rows of every array, block after block; the results in the blocks' order.

    arrays   (..., D) each, with the same leading axes, which are taken as one: a block is (some rows, D). The arrays
             that `function` writes into must be contiguous, so that their blocks are views of them
    """
    flat = [array.reshape(-1, array.shape[-1]) for array in arrays]
    rows = len(flat[0])
    widest = max(array.nbytes for array in flat)
    blocks = max(1, min(rows, round(widest / BLOCK_BYTES)))
    if blocks == 1:
        return [function(*flat)]
    return in_parallel(lambda block: function(*(array[block] for array in flat)), _slices(rows, blocks))


def shares(heads: int) -> list[slice]:
    """The heads that each of our threads takes, if BLAS has one thread; otherwise all heads as one share.

    A head's arithmetic needs no other head, so the result does not depend on the shares.
    """
    return _slices(heads, min(number_of_threads(), heads)) if _blas_has_one_thread() else [slice(None)]


# Matrix products


def use_own_threads() -> None:
    """Let BLAS compute on the thread that calls it, and let `product` use our threads: for programs that train.

    On a quiet machine a training step takes 0.8 to 1.0 times as long as with the threads of BLAS, and beside one busy
    process 0.6 to 0.7 times (docs/performance-log.md). Decoding one token at a time takes 1.2 times as long, because
    its products are over before a thread has woken up. It holds for the whole process, so a library does not call it.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1, user_api="blas")
    _blas_has_one_thread.cache_clear()


@cache
def _blas_has_one_thread() -> bool:
    return process.number_of_threads() == 1


def product(a: Array, b: Array) -> Array:
    """a @ b, in parts on our threads if BLAS has one thread only.

    a, b   (N, D) and (D, F), or stacks of such matrices, (B, H, N, D) and (B, H, D, F)

    The last axis of the result is the fastest in memory, however the operands lie.
    """
    multiplications = a.size * b.shape[-1]
    parts = min(number_of_threads(), FEWEST_PARTS * multiplications // SPLIT_FROM)
    if multiplications < SPLIT_FROM or not _blas_has_one_thread() or parts == 1:
        whole: Array = np.matmul(a, b, order="C")
        return whole
    y = np.empty((*a.shape[:-1], b.shape[-1]), np.result_type(a, b))
    in_parallel(lambda part: np.matmul(*part), _parts(a, b, y, parts))
    return y


def _parts(a: Array, b: Array, y: Array, threads: int) -> list[tuple[Array, Array, Array]]:
    """What each thread multiplies, and where it puts the result: some heads or sequences, some rows or some columns."""
    if a.ndim > 2:
        heads = a.shape[1] >= threads
        return [
            (a[:, part], b[:, part], y[:, part]) if heads else (a[part], b[part], y[part])
            for part in _slices(a.shape[1 if heads else 0], threads)
        ]
    if len(a) >= b.shape[1]:
        return [(a[part], b, y[part]) for part in _slices(len(a), threads)]
    return [(a, b[:, part], y[:, part]) for part in _slices(b.shape[1], threads)]
