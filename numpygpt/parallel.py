"""A function over blocks of rows, on all cores.

Element-wise work on a large array is bound by memory: each NumPy operation reads and writes the whole array. Done on a
block of rows that fits in a core's cache, a chain of operations touches memory once; done on several blocks at a time,
it uses every core, because NumPy releases the interpreter's lock while it computes.

The blocks depend on the arrays' sizes alone, never on the number of threads, so the result is the same bit for bit on
any machine, also where partial sums of the blocks are added up.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

from numpygpt.shapes import Array

#: Bytes of one operand's block. Smaller, and threads spend their time handing the interpreter's lock to each other;
#: larger, and blocks leave the cache. On two cores GELU of 512 x 3072 takes 5.3 ms at 128 KiB, 3.4 at 512, 8.6 at 2048
#: (one thread: 10).
BLOCK_BYTES = 512 * 1024


def number_of_threads() -> int:
    """Threads for element-wise work: OMP_NUM_THREADS, which also bounds matrix products, or every core we may use."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdigit() and int(limit) > 0:
        return int(limit)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _workers(threads: int, process_id: int) -> ThreadPoolExecutor:
    """The threads, started on first use; a forked child (another process id) has none and starts its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="numpygpt-rows")


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
    starts = [rows * block // blocks for block in range(blocks + 1)]
    slices = [slice(*ends) for ends in pairwise(starts)]
    threads = number_of_threads()
    run = map if threads == 1 else _workers(threads, os.getpid()).map
    return list(run(lambda rows: function(*(array[rows] for array in flat)), slices))
