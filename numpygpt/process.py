"""What a program may ask of its process: the threads of BLAS, the machine's memory, and freed memory kept for reuse."""

import ctypes
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

#: Where Linux says how much memory a container may have.
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")

M_TRIM_THRESHOLD = -1  # the parameters of mallopt(3), from <malloc.h>
M_MMAP_THRESHOLD = -3


def number_of_threads() -> int:
    """How many threads NumPy's matrix products run on now.

    BLAS decides it: by OMP_NUM_THREADS and its own variables when the process starts, by the cores that the process may
    use, or by `threadpoolctl.threadpool_limits` at any time later. For a BLAS that threadpoolctl does not know, such as
    Apple's, it is the number of cores that the process may use.
    """
    threads = [library.num_threads for library in _blas_of_numpy()]
    if threads:
        return min(threads)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _blas_of_numpy() -> list[Any]:
    """threadpoolctl's view of the BLAS that NumPy brings with it, or else of each BLAS in the process."""
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return [library for library in libraries if "numpy" in library.filepath] or libraries


def machine_memory() -> int | None:
    """Bytes of memory that this process can have at most: the machine's, or less in a container. None if unknown."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    with suppress(OSError, ValueError):  # no such file outside a container, and the word "max" where it has no limit
        memory = min(memory, int(CONTAINER_LIMIT.read_text(encoding="ascii")))
    return memory


def keep_freed_memory(largest_block: int = 2**30) -> bool:
    """Ask glibc to keep freed blocks of up to `largest_block` bytes for reuse; returns whether it agreed.

    A training step makes and frees the same arrays again and again. glibc hands large freed blocks back to the system
    and asks for them anew, and the system clears every page each time: about a fifth of a step of the default model
    (0.36 s if it does, 0.29 s if it does not, on one thread).

    For programs, not libraries: it holds for the whole process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, largest_block) and mallopt(M_TRIM_THRESHOLD, 2 * largest_block - 1))
