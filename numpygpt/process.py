"""Keep freed memory for the next array, where the C library is glibc.

A training step makes and frees the same arrays again and again. glibc hands large freed blocks back to the system and
asks for them anew, and the system clears every page each time: about a fifth of a step of the default model (0.36 s
with, 0.29 s without, on one thread). A program may tell it not to.
"""

import ctypes

M_TRIM_THRESHOLD = -1  # the parameters of mallopt(3), from <malloc.h>
M_MMAP_THRESHOLD = -3


def keep_freed_memory(largest_block: int = 2**30) -> bool:
    """Ask glibc to keep freed blocks of up to `largest_block` bytes for reuse; returns whether it agreed.

    For programs, not libraries: it holds for the whole process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, largest_block) and mallopt(M_TRIM_THRESHOLD, 2 * largest_block - 1))
