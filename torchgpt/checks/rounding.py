"""What rounding does to each tensor of a PyTorch computation: a run in float64 with a shorter dtype's rounding errors.

    with RoundingErrors(np.float32, seed=0):
        loss = model(inputs).sum()      # every operation, of forward and backward, gets random errors as in float32
        loss.backward()

One operation. In the standard model of floating-point arithmetic (Higham 2002, "Accuracy and Stability of Numerical
Algorithms", section 2.2), an elementary operation gives y (1 + δ) for the exact y, with |δ| <= u, the unit roundoff;
below the smallest normal number the error is absolute. A sum of n products is rounded n times, with errors of u times
its partial sums. At worst they add up to n u |A||B| (section 3.5), but errors of random sign add up to about
sqrt(n) u |A||B| (Higham & Mary 2019, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput.
41, section 3). Some operations of PyTorch are several steps of arithmetic (softmax, variance), and each step has its
errors. So the rounding errors of an operation have a *scale*: u times a formula in its operands (`SCALES`).

The chain. Whether later operations enlarge an error or cancel it depends on the whole computation. It is not estimated
but observed, as in Monte Carlo arithmetic (Parker 1997, UCLA report CSD-970002) and in CESTAC (Vignes 1993, Math.
Comput. Simul. 35): each result gets a normal random error of its operation's scale, and the distance between the run
with errors and the run without them is what rounding may do to each tensor. This holds also if first-order theory
fails: in a saturated softmax, between two scores that tie at 1e5, in a gradient that is zero except for rounding.

The scales are those of the standard formulas. So an implementation with a worse formula (a variance that cancels, a
softmax without its shift) is not excused for the larger errors of that formula.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def _own_size(y: Tensor, *_: Any, **__: Any) -> Tensor:
    return y.abs()


def _matrix_product(product: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return math.sqrt(a.shape[-1]) * (a.abs() @ b.abs())


def _product_and_bias(y: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return math.sqrt(a.shape[-1] + 1) * (bias.abs() + a.abs() @ b.abs())


def _sum(total: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return math.sqrt(x.numel() / total.numel()) * x.abs().sum(*args, **kwargs)


def _mean(mean: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return math.sqrt(x.numel() / mean.numel()) * x.abs().mean(*args, **kwargs)


def _norm(norm: Tensor, x: Tensor, *_: Any, **__: Any) -> Tensor:
    return math.sqrt(x.numel() / norm.numel()) * norm


def _variance(variance: Tensor, x: Tensor, dim: Any = None, *, keepdim: bool = False, **_: Any) -> Tensor:
    """For Welford's updates: proportional to ‖x‖ / ‖x - mean(x)‖ (Chan, Golub & LeVeque 1983, Amer. Statist. 37)."""
    mean_square = (x * x).mean(dim, keepdim)
    return math.sqrt(x.numel() / variance.numel()) * (variance * mean_square).sqrt()


def _softmax(y: Tensor, x: Tensor, dim: int, *_: Any) -> Tensor:
    """For exp(x - max) / sum: the exponent's rounding error is relative to |x - max|, so that of y is y |x - max|."""
    depth = (x.amax(dim, keepdim=True) - x).masked_fill(y == 0, 0)
    return y * (depth + (y * depth).sum(dim, keepdim=True) + math.sqrt(x.shape[dim]))


def _log_softmax(y: Tensor, x: Tensor, dim: int, *_: Any) -> Tensor:
    """For (x - max) - log(sum(exp(x - max)))."""
    depth = (x.amax(dim, keepdim=True) - x).masked_fill(y.isneginf(), 0)
    return y.abs() + depth + (y.exp() * depth).sum(dim, keepdim=True) + math.sqrt(x.shape[dim])


def _softmax_backward(d_x: Tensor, d_y: Tensor, y: Tensor, dim: int, *_: Any) -> Tensor:
    """For y d_y - y sum(y d_y)."""
    products = (y * d_y).abs()
    return products + y * math.sqrt(y.shape[dim]) * products.sum(dim, keepdim=True)


def _log_softmax_backward(d_x: Tensor, d_y: Tensor, y: Tensor, dim: int, *_: Any) -> Tensor:
    """For d_y - exp(y) sum(d_y)."""
    return d_y.abs() + y.exp() * math.sqrt(y.shape[dim]) * d_y.abs().sum(dim, keepdim=True)


def _tanh_backward(d_x: Tensor, d_y: Tensor, y: Tensor) -> Tensor:
    """For d_y (1 - y²); here 1 - y² has the rounding errors of 1."""
    return d_y.abs()


def _embedding_backward(d_weight: Tensor, d_y: Tensor, ids: Tensor, *args: Any) -> Tensor:
    """For the sum that each row has over the places of its id."""
    places = aten.embedding_dense_backward(torch.ones_like(d_y), ids, *args)
    return places.sqrt() * aten.embedding_dense_backward(d_y.abs(), ids, *args)


def _linear_interpolation(y: Tensor, start: Tensor, end: Tensor, weight: float) -> Tensor:
    """For start + weight (end - start), or, if weight >= 0.5, for end - (1 - weight) (end - start).

    y may have overwritten start, so the second term is written with end - y = (1 - weight) (end - start).
    """
    share = weight / (1 - weight) if weight < 0.5 else 1.0
    return y.abs() + share * (end - y).abs()


def _add_product(y: Tensor, x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return y.abs() + (value * a * b).abs()


def _add_quotient(y: Tensor, x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return y.abs() + (value * a / b).abs()


#: {operation: scale}: scale(result, *operands) is the scale of its rounding errors, in units of u. Elementwise
#: operations that are not here round their result once, so their scale is |y|.
SCALES: Mapping[Any, Callable[..., Tensor]] = {
    aten.mm: _matrix_product,
    aten.bmm: _matrix_product,
    aten.addmm: _product_and_bias,
    aten.sum: _sum,
    aten.mean: _mean,
    aten.var: _variance,
    aten.linalg_vector_norm: _norm,
    aten._softmax: _softmax,
    aten._log_softmax: _log_softmax,
    aten.log_sigmoid_forward: _own_size,
    aten.log_sigmoid_backward: _own_size,
    aten._softmax_backward_data: _softmax_backward,
    aten._log_softmax_backward_data: _log_softmax_backward,
    aten.tanh_backward: _tanh_backward,
    aten.embedding_dense_backward: _embedding_backward,
    aten.lerp_: _linear_interpolation,
    aten.addcmul_: _add_product,
    aten.addcdiv_: _add_quotient,
}

#: Operations that round nothing: they move values, or make small whole numbers.
EXACT = {
    aten._to_copy,
    aten._unsafe_view,
    aten.amax,
    aten.arange,
    aten.clone,
    aten.embedding,
    aten.gather,
    aten.masked_fill,
    aten.masked_fill_,
    aten.neg,
    aten.new_zeros,
    aten.ones,
    aten.ones_like,
    aten.scalar_tensor,
    aten.scatter_add,
    aten.stack,
    aten.where,
    aten.full_like,
    aten.zeros_like,
}


@cache
def _scale(func: Any) -> Callable[..., Tensor] | None:
    """The scale of an operation's rounding errors; None for one that rounds nothing."""
    operation = func.overloadpacket
    if func.is_view or operation in EXACT:
        return None
    if operation in SCALES:
        return SCALES[operation]
    if torch.Tag.pointwise in func.tags:
        return _own_size
    raise NotImplementedError(f"the rounding errors of {func} are not known; add it to SCALES or EXACT")


class Format(NamedTuple):
    """How a floating-point format rounds.

    roundoff    u, the largest relative error of a result
    inside      the largest relative error of a step within an operation: for short formats, PyTorch computes an
                operation in float32 and rounds its result once
    underflow   the largest absolute error of a result that is too small for the format: the smallest normal number, if
                smaller ones may be flushed to zero
    """

    roundoff: float
    inside: float
    underflow: float


FORMATS: Mapping[str, Format] = {
    "float64": Format(2.0**-53, 2.0**-53, 2.0**-1022),
    "float32": Format(2.0**-24, 2.0**-24, 2.0**-126),
    "tf32": Format(2.0**-11, 2.0**-11, 2.0**-126),  # in fact only operands of products are rounded; here every result
    "bfloat16": Format(2.0**-8, 2.0**-24, 2.0**-126),
    "float16": Format(2.0**-11, 2.0**-24, 2.0**-25),  # numbers below the normal ones are not flushed
}


def format_of(dtype: Any) -> Format:
    """The format of that name, or of that NumPy dtype."""
    return FORMATS[dtype if dtype in FORMATS else str(np.dtype(dtype))]


class RoundingErrors(TorchDispatchMode):
    """Within the `with`, every operation on float64 tensors gets random rounding errors as `dtype` would have them.

    dtype    one of FORMATS
    seed     the seed of the errors
    factor   makes the errors so many times as large

    Raises NotImplementedError for an operation whose rounding errors have no formula here.
    """

    def __init__(self, dtype: Any, seed: int, factor: float = 1.0):
        super().__init__()
        self.result, self.inside, self.absolute = (factor * largest for largest in format_of(dtype))
        self.rng = np.random.default_rng(seed)  # faster than PyTorch's generator

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that nothing here is compiled. PyTorch then does not load its compiler, which would take seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        y = result[0] if isinstance(result, tuple) else result
        if isinstance(y, Tensor) and y.dtype == torch.float64:
            scale = _scale(func)
            if scale is not None:
                errors = torch.from_numpy(np.asarray(self.rng.standard_normal(y.shape)))
                inside = self.inside * scale(y, *args, **(kwargs or {}))
                size = inside + (self.result - self.inside) * y.abs() + self.absolute * (y != 0)
                y.addcmul_(errors, size.masked_fill(~y.isfinite(), 0))
        return result
