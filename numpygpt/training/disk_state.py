"""The moments of an optimizer in a file that is mapped into memory.

The operating system reads a page of the file when a step comes to it, and may write it back and forget it when memory
is short. So a model can be trained whose moments memory cannot hold. This is what the paged optimizer of QLoRA
(Dettmers et al. 2023, arXiv:2305.14314, section 3) does between a GPU and its host. The numbers are the same as in
memory, bit for bit.

The file has no name as soon as it is open. So it is gone when its process ends, however that happens, and nobody can
take its moments for those of a checkpoint: a run that goes on copies them from its checkpoint to a new file.
"""

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from numpygpt.errors import InputError
from numpygpt.shapes import Array

#: Each array begins at a multiple of so many bytes, which suits every dtype.
ALIGNMENT = 64
#: Zeros are written in pieces of so many bytes where the bytes of a file cannot be reserved at once.
PIECE = 2**24
#: How a file system says that it cannot reserve bytes at all. Most C libraries write zeros then, and not all of them.
CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def zeros_on_disk(folder: Path, arrays: Sequence[Array]) -> list[Array]:
    """An array of zeros like each of these, all of them in one new file in the folder, which is made if need be.

    The bytes of the file are reserved before anything is computed. A disk that filled up later could not be told from
    a fault of the program, because a write to a mapped page has no error of its own.

    Raises InputError if the folder cannot be written to, and if the disk is too full.
    """
    sizes = [-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays]
    total = max(ALIGNMENT, sum(sizes))  # an empty file cannot be mapped
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), total)
            whole = np.memmap(file, np.uint8, "r+", shape=(total,))
    except OSError as error:
        raise InputError(
            f"the optimizer's state of {total:,} bytes cannot be put on the disk, in {folder}: {error.strerror}; "
            f"name another folder with --optimizer-state-dir, or leave out --optimizer-state disk"
        ) from error
    made, begin = [], 0
    for array, size in zip(arrays, sizes, strict=True):
        made.append(np.ndarray(array.shape, array.dtype, buffer=whole, offset=begin))
        begin += size
    return made


def _reserve(descriptor: int, size: int) -> None:
    """Give the file so many bytes of the disk, all zeros. OSError if the disk does not have them."""
    try:
        os.posix_fallocate(descriptor, 0, size)
        return
    except AttributeError:  # the system has no such call
        pass
    except OSError as error:
        if error.errno not in CANNOT_RESERVE:
            raise
    zeros = memoryview(bytes(min(PIECE, size)))
    while size:
        size -= os.write(descriptor, zeros[:size])  # a disk that fills up takes a part, and nothing of the next
