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

    BLAS decides this when the process starts: by OMP_NUM_THREADS, by its own variables, or by the cores that the
    process may use. `threadpoolctl.threadpool_limits` can change it later. For a BLAS that threadpoolctl does not know,
    such as Apple's, the answer is the number of cores that the process may use.
    """
    threads = [library.num_threads for library in _blas_of_numpy()]
    if threads:
        return min(threads)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _blas_of_numpy() -> list[Any]:
    """What threadpoolctl knows of the BLAS that NumPy brings, or, if there is none, of each BLAS in the process."""
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return [library for library in libraries if "numpy" in library.filepath] or libraries


def machine_memory() -> int | None:
    """The most bytes of memory that this process can have: the machine's, or less in a container. None if unknown."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    with suppress(OSError, ValueError):  # outside a container there is no such file; without a limit it says "max"
        memory = min(memory, int(CONTAINER_LIMIT.read_text(encoding="ascii")))
    return memory


def keep_freed_memory(largest_block: int = 2**30) -> bool:
    """Ask glibc to keep freed blocks of up to `largest_block` bytes for reuse; returns whether it agreed.

    Every training step makes and frees arrays of the same sizes. By default, glibc gives large freed blocks back to the
    system and asks for new ones, and the system clears every page each time. This takes about a fifth of a step of the
    default model (a step takes 0.36 s with it, and 0.29 s without it, on one thread).

    This is meant for programs, not for libraries, because it holds for the whole process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, largest_block) and mallopt(M_TRIM_THRESHOLD, 2 * largest_block - 1))
