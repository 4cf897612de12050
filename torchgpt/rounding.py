"""What rounding does to each tensor of a PyTorch computation: PyTorch in float64, with the rounding errors of a shorter dtype.

    with RoundingErrors(np.float32, seed=0):
        loss = model(inputs).sum()      # every operation, in forward and backward, makes random errors as float32 might
        loss.backward()

One operation. In the standard model of floating-point arithmetic (Higham 2002, "Accuracy and Stability of Numerical Algorithms",
section 2.2) an elementary result y comes out as y (1 + δ) with |δ| <= u, the unit roundoff; below the smallest normal number the error
is absolute. A sum of n products makes n such errors, at the size of its partial sums: in the worst case n u |A||B| (section 3.1,
3.5), but errors of random sign add up to about sqrt(n) u |A||B| (Higham & Mary 2019, "A new approach to probabilistic rounding error
analysis", SIAM J. Sci. Comput. 41, section 3). What PyTorch computes in one operation but arithmetic in several (softmax, variance)
makes the errors of its steps. So each operation has a *scale* of its rounding error, u times a formula of its operands: `SCALES`.

The chain. How later operations enlarge or cancel an error is a matter of the whole computation. It is not estimated but
observed, as in Monte Carlo arithmetic (Parker 1997, UCLA report CSD-970002) and CESTAC (Vignes 1993, Math. Comput. Simul. 35): a normal
random error of the operation's scale is added to each result, and the run's distance from the run without errors is what rounding may
do to each tensor. This holds where first-order theory fails: in a saturated softmax, at a tie of two scores of 1e5, in a
gradient that is zero but for rounding.

The scales are those of the standard formulas. An implementation that computes by a worse one (a variance that cancels, a softmax
without its shift) is therefore not excused by its own rounding errors.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def _matrix_product(product: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return math.sqrt(a.shape[-1]) * (a.abs() @ b.abs())


def _product_and_bias(y: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return math.sqrt(a.shape[-1] + 1) * (bias.abs() + a.abs() @ b.abs())


def _sum(total: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return math.sqrt(x.numel() / total.numel()) * x.abs().sum(*args, **kwargs)


def _mean(mean: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return math.sqrt(x.numel() / mean.numel()) * x.abs().mean(*args, **kwargs)


def _variance(variance: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Of the mean of c², where c = x - mean(x) is as accurate as its size: to first order, an error of the mean cancels."""
    return math.sqrt(x.numel() / variance.numel()) * variance


def _softmax(y: Tensor, x: Tensor, dim: int, *_: Any) -> Tensor:
    """Of exp(x - max) / sum: the exponent's rounding is relative to |x - max|, and so becomes y |x - max|."""
    depth = (x.amax(dim, keepdim=True) - x).masked_fill(y == 0, 0)
    return y * (depth + (y * depth).sum(dim, keepdim=True) + math.sqrt(x.shape[dim]))


def _log_softmax(y: Tensor, x: Tensor, dim: int, *_: Any) -> Tensor:
    """Of (x - max) - log(sum(exp(x - max)))."""
    depth = x.amax(dim, keepdim=True) - x
    return y.abs() + depth + (y.exp() * depth).sum(dim, keepdim=True) + math.sqrt(x.shape[dim])


def _softmax_backward(d_x: Tensor, d_y: Tensor, y: Tensor, dim: int, *_: Any) -> Tensor:
    """Of y d_y - y sum(y d_y)."""
    products = (y * d_y).abs()
    return products + y * math.sqrt(y.shape[dim]) * products.sum(dim, keepdim=True)


def _log_softmax_backward(d_x: Tensor, d_y: Tensor, y: Tensor, dim: int, *_: Any) -> Tensor:
    """Of d_y - exp(y) sum(d_y)."""
    return d_y.abs() + y.exp() * math.sqrt(y.shape[dim]) * d_y.abs().sum(dim, keepdim=True)


def _tanh_backward(d_x: Tensor, d_y: Tensor, y: Tensor) -> Tensor:
    """Of d_y (1 - y²), where 1 - y² has the rounding errors of 1."""
    return d_y.abs()


def _embedding_backward(d_weight: Tensor, d_y: Tensor, ids: Tensor, *args: Any) -> Tensor:
    """Of a row's sum over all places of its id."""
    return math.sqrt(ids.numel()) * aten.embedding_dense_backward(d_y.abs(), ids, *args)


def _mean_of_nonnegative(y: Tensor, x: Tensor, *_: Any) -> Tensor:
    return math.sqrt(len(x)) * y.abs()


def _linear_interpolation(y: Tensor, start: Tensor, end: Tensor, weight: float) -> Tensor:
    """Of start + weight (end - start); start may have been overwritten by y."""
    return y.abs() + (weight / (1 - weight) * (end - y)).abs()


def _add_product(y: Tensor, x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return y.abs() + (value * a * b).abs()


def _add_quotient(y: Tensor, x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return y.abs() + (value * a / b).abs()


#: scale(result, *operands) of the rounding error of an operation, in units of u. Elementwise operations that are not here
#: round their result: |y|.
SCALES: Mapping[Any, Callable[..., Tensor]] = {
    aten.mm: _matrix_product,
    aten.bmm: _matrix_product,
    aten.addmm: _product_and_bias,
    aten.sum: _sum,
    aten.mean: _mean,
    aten.var: _variance,
    aten._softmax: _softmax,
    aten._log_softmax: _log_softmax,
    aten._softmax_backward_data: _softmax_backward,
    aten._log_softmax_backward_data: _log_softmax_backward,
    aten.tanh_backward: _tanh_backward,
    aten.embedding_dense_backward: _embedding_backward,
    aten.nll_loss_forward: _mean_of_nonnegative,
    aten.nll_loss_backward: lambda d_x, *_: d_x.abs(),
    aten.lerp_: _linear_interpolation,
    aten.addcmul_: _add_product,
    aten.addcdiv_: _add_quotient,
}

#: Operations that round nothing: they move numbers, or make small whole ones.
EXACT = {
    getattr(aten, name)
    for name in (
        "_unsafe_view arange cat clone copy_ embedding empty_like eq fill_ masked_fill neg new_zeros ones ones_like roll triu where "
        "zero_ zeros zeros_like"
    ).split()
}


class RoundingErrors(TorchDispatchMode):
    """Within the `with`, every operation on float64 tensors makes random rounding errors of the size of `dtype`'s.

    Raises NotImplementedError for an operation whose rounding errors have no formula here.
    """

    def __init__(self, dtype: Any, seed: int):
        super().__init__()
        self.unit_roundoff = float(np.finfo(dtype).eps) / 2
        self.smallest = float(np.finfo(dtype).smallest_normal)
        self.generator = torch.Generator().manual_seed(seed)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled, so PyTorch need not load its compiler (seconds) to keep it away."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        y = result[0] if isinstance(result, tuple) else result
        if not func.is_view and isinstance(y, Tensor) and y.dtype == torch.float64:
            operation = func.overloadpacket
            if operation in SCALES:
                self._disturb(y, SCALES[operation](y, *args, **(kwargs or {})))
            elif operation not in EXACT:
                if torch.Tag.pointwise not in func.tags:
                    raise NotImplementedError(f"the size of {func}'s rounding errors is not known; add it to SCALES or EXACT")
                self._disturb(y, y.abs())
        return result

    def _disturb(self, y: Tensor, scale: Tensor) -> None:
        errors = torch.randn(y.shape, generator=self.generator, dtype=y.dtype)
        y += errors * (self.unit_roundoff * scale + self.smallest)
