"""Quantized linear: a linear layer whose weight stays packed. The weight is frozen: it has no gradient.

    x        (..., D)   input
    weight   (F, D)     W, quantized (`numpygpt.numerics.schemes`)
    bias     (F)        b, optional
    y        (..., F)   output

Forward, with the leading axes taken as N rows:

    (1)  V = dequantize(W)
    (2)  y = x @ Vᵀ + b

Derivation, from dL = <d_y, dy> with dy = dx @ Vᵀ + 1 @ dbᵀ, as V is constant:

    <d_y, dx @ Vᵀ> = <d_y @ V, dx>                                    d_x = d_y @ V
    <d_y, 1 @ dbᵀ> = <1ᵀ @ d_y, dbᵀ>                                  d_b = the sum of d_y over its rows

V is never held whole. Some rows of it are computed into a buffer that stays in cache, multiplied, and overwritten by
the next ones. A product with one row x, as in decoding, is bound by memory: it reads W once, and packed W is a quarter
or an eighth of the bytes. If each row of W has one step s, as in LLM.int8 (arXiv:2208.07339, section 2.1), it comes out
of the sum, and the buffer has whole numbers:

    (3)  y_f = s_f (x @ codes_fᵀ) + b_f

If a row of W has whole blocks of levels, as that of NF4 usually has, each block's constant a comes out of the block's
part of the sum. So with few rows x, there are far fewer numbers to be scaled than V has:

    (4)  y_f = sum over the blocks k of a_fk (x_k @ levels_fkᵀ) + b_f

Saved: the packed W for d_x, if that gradient is wanted. The backward computes the rows of V again.
Trap: a gradient of W would be that of V, and of no use: the codes are whole numbers, and do not move by small steps.
"""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from numpygpt.numerics import absmax, codebook, schemes
from numpygpt.parallel import SPLIT_FROM, in_parallel, product, shares
from numpygpt.shapes import Array, Inexact

#: So many rows of x are worth large blocks of V: their product takes longer than it takes to compute V.
MANY = 32
#: The values of a block of V that is multiplied with many rows of x: 4 MiB in float32.
AT_ONCE = 1024 * 1024
#: The same with few rows: 512 KiB, which stay in a core's cache.
IN_CACHE = 128 * 1024

#: Blocks have to be so many times as long as x has rows, or it is faster to scale the rows of V than the sums of (4).
ROWS_OF_A_BLOCK = 16


class Saved(NamedTuple):
    weight: Any  # schemes.Quantized, or None
    bias: bool


def forward(
    x: Inexact[Array, "*rows D"],
    weight: schemes.Quantized,
    bias: Inexact[Array, "F"] | None = None,
    *,
    wanted: Collection[str] = ("x", "bias"),
) -> tuple[Inexact[Array, "*rows F"], Saved]:
    F, D = weight.shape
    rows = np.ascontiguousarray(x.reshape(-1, D))
    y = np.empty((len(rows), F), x.dtype)
    (_multiply_few if len(rows) < MANY else _multiply_many)(rows, weight, y)  # (1), (2)
    if _one_step_a_row(weight):
        y *= absmax.steps(weight, x.dtype)  # (3)
    if bias is not None:
        y += bias
    saved = Saved(weight if "x" in wanted else None, bias is not None and "bias" in wanted)
    return y.reshape(*x.shape[:-1], F), saved


class Gradients(NamedTuple):
    x: Inexact[Array, "... D"] | None
    weight: None
    bias: Inexact[Array, "F"] | None


def backward(d_y: Inexact[Array, "*rows F"], saved: Saved) -> Gradients:
    weight, bias = saved
    d_rows = d_y.reshape(-1, d_y.shape[-1])
    d_x = None if weight is None else _d_x(d_rows, weight).reshape(*d_y.shape[:-1], -1)
    return Gradients(d_x, None, d_rows.sum(axis=0) if bias else None)


def _d_x(d_rows: Array, weight: schemes.Quantized) -> Array:
    if _one_step_a_row(weight):
        d_rows = d_rows * absmax.steps(weight, d_rows.dtype)  # undoes (3)
    d_x = np.zeros((len(d_rows), weight.shape[1]), d_rows.dtype)
    for some, rows in _large_blocks(weight, d_rows.dtype):  # (1)
        d_x += product(d_rows[:, some], rows)  # undoes (2)
    return d_x


def _multiply_few(x: Array, weight: schemes.Quantized, y: Array) -> None:
    """Put x @ Vᵀ into y. Each of our threads, if V is large, computes some blocks of it and multiplies them."""
    blocks = _blocks(weight, IN_CACHE)

    def multiply(share: slice) -> None:
        buffer = np.empty((blocks[0].stop, weight.shape[1]), x.dtype)
        for some in blocks[share]:
            rows = buffer[: some.stop - some.start]
            if _is_worth_blocks(weight, len(x)):
                _multiply_by_blocks(x, weight, some, rows, y[:, some])
            else:
                _put_rows(weight, some, rows)
                np.matmul(x, rows.T, out=y[:, some])

    large = y.size * x.shape[1] >= SPLIT_FROM
    in_parallel(multiply, shares(len(blocks)) if large else [slice(None)])


def _multiply_by_blocks(x: Array, weight: codebook.Codebook, some: slice, buffer: Array, y: Array) -> None:
    """Put the product of x with these rows of V into y. It takes 0.6 of the time of scaling the rows before."""
    D, size = weight.shape[1], weight.block_size
    first, last = (row * D // size for row in (some.start, some.stop))
    codebook.put_levels(weight, some.start * D, buffer.reshape(-1))
    levels = buffer.reshape(len(buffer), -1, size).transpose(1, 0, 2)
    sums = np.matmul(levels, x.reshape(len(x), -1, size).transpose(1, 2, 0))  # a block, a row of V, a row of x
    np.einsum("kfn,fk->nf", sums, codebook.constants(weight, first, last).reshape(len(buffer), -1), out=y)  # (4)


def _multiply_many(x: Array, weight: schemes.Quantized, y: Array) -> None:
    """Put x @ Vᵀ into y."""
    for some, rows in _large_blocks(weight, x.dtype):
        y[:, some] = product(x, rows.T)


# Rows of V, and if each row has one step, of the codes


def _one_step_a_row(weight: schemes.Quantized) -> TypeGuard[absmax.Absmax]:
    return isinstance(weight, absmax.Absmax) and weight.block_size == weight.shape[-1]


def _is_worth_blocks(weight: schemes.Quantized, rows: int) -> TypeGuard[codebook.Codebook]:
    """Whether (4) is possible, and takes less time for so many rows of x than scaling the rows of V."""
    is_possible = isinstance(weight, codebook.Codebook) and weight.shape[1] % weight.block_size == 0
    return is_possible and rows * ROWS_OF_A_BLOCK <= weight.block_size


def _large_blocks(weight: schemes.Quantized, dtype: Any) -> Iterator[tuple[slice, Array]]:
    """Large blocks of rows, and which rows they are."""
    for some in _blocks(weight, AT_ONCE):
        rows = np.empty((some.stop - some.start, weight.shape[1]), dtype)
        _put_rows(weight, some, rows)
        yield some, rows


def _put_rows(weight: schemes.Quantized, some: slice, out: Array) -> None:
    start = some.start * weight.shape[-1]
    if _one_step_a_row(weight):
        absmax.put_numbers(weight, start, out.reshape(-1))  # (3)
    else:
        schemes.put_values(weight, start, out.reshape(-1))


def _blocks(weight: schemes.Quantized, size: int) -> list[slice]:
    """Blocks of rows, of about `size` values each."""
    F, D = weight.shape
    height = min(F, max(1, size // D))
    return [slice(start, min(start + height, F)) for start in range(0, F, height)]
