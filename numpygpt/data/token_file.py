"""Files of token ids: one id after another, without a header, little-endian.

An id takes 2 bytes (uint16) if the vocabulary has at most 65,536 ids, and 4 bytes (uint32) otherwise. nanoGPT's and
llm.c's training data has the same form. The file does not say which tokenizer made it.

    tokens.bin       what a model learns from
    tokens.val.bin   beside it: what it is validated with

Ids are read through the memory map of the operating system, so a file may be larger than the memory.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from numpygpt.errors import InputError
from numpygpt.reading import refuse_irregular
from numpygpt.shapes import Array, Integer

#: Ids that are looked at together when a file is checked: 8 MiB or 16 MiB.
CHECKED_AT_ONCE = 2**22


def dtype_of(vocab_size: int) -> np.dtype:
    """The dtype of a file of these token ids."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def validation_path(path: Path) -> Path:
    """The file of validation tokens that belongs to a file of training tokens."""
    return path.with_name(f"{path.stem}.val{path.suffix}")


def open_tokens(path: str | os.PathLike[str], vocab_size: int) -> Integer[Array, "N"]:
    """The token ids of a file, a read-only array of uint16 or uint32 over the file's memory map.

    Raises InputError for a file that is missing, empty, no regular file or no whole number of ids, and for an id that
    is outside the vocabulary. The whole file is read for it, a part at a time.
    """
    path, dtype = Path(path), dtype_of(vocab_size)
    refuse_irregular(path, "token file")
    try:
        size = path.stat().st_size
        if size == 0 or size % dtype.itemsize:
            raise InputError(
                f"the token file {path} has {size} bytes; expected a multiple of {dtype.itemsize}, because each id of "
                f"a vocabulary of {vocab_size} takes {dtype.itemsize} bytes: write it with numpygpt tokenize"
            )
        ids = np.memmap(path, dtype, mode="r")
    except OSError as error:
        raise InputError(f"cannot read the token file {path}: {error.strerror}") from error
    for start, part in _parts(ids):
        outside = np.flatnonzero(part >= vocab_size)
        if outside.size:
            raise InputError(
                f"the token file {path} has id {part[outside[0]]} at position {start + outside[0]}; the model's "
                f"vocabulary goes from 0 to {vocab_size - 1}: was the file made with another tokenizer?"
            )
    return ids


def _parts(ids: Array) -> Iterator[tuple[int, Array]]:
    return ((start, ids[start : start + CHECKED_AT_ONCE]) for start in range(0, len(ids), CHECKED_AT_ONCE))
