"""How far tensors are from their references: Euclidean norms of whole tensors and of rows, block by block.

A block of rows of both tensors is read, subtracted and squared while it stays in a core's cache, and several threads
take a block each. So two traces are compared in about the time in which they are read, and in little memory, however
large they are.

Squares of very large and very small numbers overflow or underflow. `numpygpt.checks.compare` can measure those, and
says what is wrong with a tensor whose error cannot be measured. Here, None stands for both.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from numpygpt.checks.compare import Norms
from numpygpt.formats.tensor_file import StoredTensor
from numpygpt.parallel import in_parallel
from numpygpt.shapes import Array

#: Elements of a block. Smaller blocks fit a smaller cache, but then the threads wait for the interpreter more often.
BLOCK = 2**17
#: Squares outside these limits may have lost digits, or all.
SQUARES = 1e-250, 1e250


class Measured(NamedTuple):
    """‖ours - expected‖ of the whole tensor and of each row along the last axis, and ‖expected‖.

    Two equal infinities differ by 0, and have no part in ‖expected‖.
    """

    error: Norms
    size: float


class _Squares(NamedTuple):
    """The squares of the same norms in a block: of each of its rows, and of the whole reference."""

    rows: Array
    expected: float


def measured(ours: Array, expected: Array) -> Measured | None:
    """The distance of two arrays; None if squares cannot give it, or if they have other shapes or are no floats."""
    if ours.shape != expected.shape or not expected.size or not np.issubdtype(ours.dtype, np.floating):
        return None
    width = expected.shape[-1] if expected.ndim else 1
    ours, expected = ours.reshape(-1, width), expected.reshape(-1, width)
    return _together([_squares(ours[rows], expected[rows]) for rows in _blocks(*expected.shape)])


def can_be_measured(ours: StoredTensor, expected: StoredTensor) -> bool:
    """Whether `all_measured` can take the two: floats of one shape."""
    layout, reference = ours.layout, expected.layout
    return layout.shape == reference.shape and math.prod(layout.shape) > 0 and "float" in layout.dtype


def all_measured(pairs: Mapping[str, tuple[StoredTensor, StoredTensor]]) -> dict[str, Measured | None]:
    """The distance of each pair of ours and expected by its name, as `measured` gives it; no tensor is read whole."""
    blocks = [(name, rows) for name, (_, expected) in pairs.items() for rows in _blocks(*_as_matrix(expected))]

    def squares_of(block: tuple[str, slice]) -> _Squares:
        name, rows = block
        ours, expected = (_read(tensor, rows) for tensor in pairs[name])
        return _squares(ours, expected)

    found: dict[str, list[_Squares]] = {name: [] for name in pairs}
    for (name, _), squares in zip(blocks, in_parallel(squares_of, blocks), strict=True):
        found[name].append(squares)
    return {name: _together(squares) for name, squares in found.items()}


def _as_matrix(tensor: StoredTensor) -> tuple[int, int]:
    """The numbers of rows and of elements in a row; a scalar is one row of one."""
    *leading, width = tensor.layout.shape or (1,)
    return math.prod(leading), width


def _read(tensor: StoredTensor, rows: slice) -> Array:
    width = _as_matrix(tensor)[1]
    return tensor.part(rows.start * width, rows.stop * width).reshape(-1, width)


def _blocks(rows: int, width: int) -> Iterable[slice]:
    step = max(1, BLOCK // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _squares(ours: Array, expected: Array) -> _Squares:
    """Of a block of (rows, width). NaN where squares underflow, for two infinities that differ, and for a NaN.

    If both are in float32, the difference is taken in float32, which is exact where they are close (Sterbenz 1974).
    Squares are always added up in float64, where those of float32 neither overflow nor underflow.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.subtract(ours, expected).astype(np.float64, copy=False)
        rows, size = np.vecdot(difference, difference), _square(expected)
        if not math.isfinite(float(rows.sum()) + size):
            difference[ours == expected] = 0
            rows, size = np.vecdot(difference, difference), _square(np.where(np.isinf(expected), 0, expected))
    low = rows < SQUARES[0]
    if low.any() and difference[low].any():
        rows[low] = np.nan
    return _Squares(rows, size)


def _square(array: Array) -> float:
    """‖array‖²."""
    wide = array.astype(np.float64, copy=False)
    return float(np.vecdot(wide, wide).sum())


def _together(blocks: Sequence[_Squares]) -> Measured | None:
    """The norms of the tensor that has these blocks."""
    rows, size = np.concatenate([block.rows for block in blocks]), sum(block.expected for block in blocks)
    total = float(rows.sum())
    if not max(total, size) < SQUARES[1] or math.isnan(total) or math.isnan(size):
        return None
    return Measured(Norms(math.sqrt(total), np.sqrt(rows)), math.sqrt(size))
