"""What the schemes of quantization share: the check of their input, blocks of a flat array, two codes in a byte.

The values of an array are taken in the order of its rows, and blocks of equal size are cut from them, whatever the
rows' length. So one scale for the whole array, one for each row and one for each block differ only in the size of a
block: `size_of_block` says which it is. The last block may be shorter; it is called the tail.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.shapes import Array

#: The two halves of a byte hold a code each.
NIBBLE = 4


def checked(x: Any) -> Array:
    """The values to quantize, flat, as float32.

    Raises InputError for what is no array of float32 or float64 (such as an array that is quantized already), for an
    empty one, and for values that are not finite in float32.
    """
    if isinstance(x, tuple):
        raise InputError(f"the values to quantize are a {type(x).__name__}, quantized already; expected floats")
    if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64):
        raise InputError(
            f"the values to quantize are {getattr(x, 'dtype', type(x).__name__)}; expected an array of float32 or "
            f"float64"
        )
    if x.size == 0:
        raise InputError(f"the array to quantize has the shape {x.shape}, which is empty; expected at least one value")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(x, np.float32)
    wrong = ~np.isfinite(values)
    if wrong.any():
        first = tuple(int(index) for index in np.argwhere(wrong.reshape(x.shape))[0])
        raise InputError(
            f"{wrong.sum()} of {x.size} values to quantize are not finite in float32, the first {x[first]} at {first}; "
            f"expected finite values"
        )
    return values.reshape(-1)


def size_of_block(shape: tuple[int, ...], block_size: int | str) -> int:
    """How many values a block has: all of a "tensor", those of a "row" (the last axis), or this number.

    Raises InputError for a number below 1, and for another word.
    """
    if block_size == "tensor":
        return max(1, int(np.prod(shape)))
    if block_size == "row":
        return shape[-1] if shape else 1
    if isinstance(block_size, str) or block_size < 1:
        raise InputError(f'the block size is {block_size!r}; expected a number from 1, or "tensor" or "row"')
    return block_size


def count(size: int, block_size: int) -> int:
    """How many blocks there are, with the tail."""
    return -(-size // block_size)


def by_block(values: Array, block_size: int, start: int = 0) -> Iterator[tuple[slice, Array]]:
    """Views of a flat array, (blocks, values in each), and which of all blocks these are.

    There are up to three views: the rest of a block that begins before, whole blocks, and the first part of one.

    start   the place of the first value in the whole array
    """
    block, head = start // block_size, min(-start % block_size, values.size)
    whole = (values.size - head) // block_size
    if head:
        yield slice(block, block + 1), values[np.newaxis, :head]
        block += 1
    if whole:
        yield slice(block, block + whole), values[head : head + whole * block_size].reshape(-1, block_size)
        block += whole
    if head + whole * block_size < values.size:
        yield slice(block, block + 1), values[np.newaxis, head + whole * block_size :]


def largest_of_blocks(values: Array, block_size: int) -> Array:
    """The largest |value| of each block of a flat array, float32."""
    largest = np.empty(count(values.size, block_size), np.float32)
    for which, block in by_block(values, block_size):
        largest[which] = np.maximum(block.max(axis=1), -block.min(axis=1))
    return largest


def scale(values: Array, constants: Array, block_size: int, start: int = 0) -> None:
    """Multiply each value of a flat array in place by the constant of its block."""
    for which, block in by_block(values, block_size, start):
        block *= constants[which, np.newaxis]


def packed(codes: Array, filler: int) -> Array:
    """Codes of four bits, two in a byte, the first one in the high bits. `filler` follows an odd number of codes."""
    even = np.append(codes, np.uint8(filler)) if codes.size % 2 else codes
    return (even[::2] << NIBBLE) | even[1::2]


def pairs(levels: Array) -> Array:
    """What the two codes of each of the 256 bytes stand for, (256, 2), for the 16 levels of the codes."""
    both = np.empty((len(levels), len(levels), 2), levels.dtype)
    both[..., 0], both[..., 1] = levels[:, np.newaxis], levels
    return both.reshape(-1, 2)


def unpacked(codes: Array, levels: Array, start: int, stop: int, out: Array) -> None:
    """Put the levels of the codes number `start` to `stop` into `out`, which is flat. The codes are packed."""
    both = codes[start // 2 : count(stop, 2)]
    whole = start % 2 == stop % 2 == 0
    into = out.reshape(-1, 2) if whole else np.empty((both.size, 2), out.dtype)
    np.take(pairs(levels), both, axis=0, mode="clip", out=into)  # clip: no byte is out of range, so none is checked
    if not whole:
        out[...] = into.reshape(-1)[start % 2 : start % 2 + out.size]
