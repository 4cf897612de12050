"""The norms of gradients, and clipping of their common norm."""

import math
from collections.abc import Mapping

import numpy as np

from numpygpt.errors import InputError
from numpygpt.parallel import over_rows
from numpygpt.shapes import Array


def gradient_norms(grads: Mapping[str, Array]) -> dict[str, float]:
    """The Euclidean norm of each gradient, by name."""
    return {name: math.sqrt(_sum_of_squares(gradient)) for name, gradient in grads.items()}


def common_norm(norms: Mapping[str, float]) -> float:
    """The Euclidean norm of all gradients together, of which these are the norms.

    Raises InputError, which names the gradients whose norms are not finite, if it is not finite.
    """
    norm = math.hypot(*norms.values())
    if not math.isfinite(norm):
        bad = [name for name, each in norms.items() if not math.isfinite(each)]
        raise InputError(f"the gradients' norm is {norm}: not finite in {', '.join(bad) or 'the sum of their squares'}")
    return norm


def clip_grad_norm(grads: Mapping[str, Array], max_norm: float, norms: Mapping[str, float] | None = None) -> float:
    """Scale all gradients, in place, so that their common Euclidean norm is at most max_norm; returns the norm before.

    It does what torch.nn.utils.clip_grad_norm_ does (Pascanu et al. 2013, arXiv:1211.5063, section 3.2): every tensor
    is multiplied by the same factor max_norm / (norm + 1e-6), if this is below 1.

    norms   the gradients' `gradient_norms`, if they are known; None: they are computed

    Raises InputError, and changes nothing, if the norm is not finite, for a max_norm that is not positive, and for
    gradients that are not arrays of floating-point numbers or cannot be scaled in place.
    """
    if not max_norm > 0:
        raise InputError(f"max_norm is {max_norm}; expected a positive number")
    _refuse_what_cannot_be_scaled(grads)
    norm = common_norm(gradient_norms(grads) if norms is None else norms)
    factor = max_norm / (norm + 1e-6)
    if factor < 1:
        for gradient in grads.values():
            if _has_rows(gradient):
                over_rows(lambda block: np.multiply(block, factor, out=block), gradient)
            else:
                gradient *= factor
    return norm


def _refuse_what_cannot_be_scaled(grads: Mapping[str, Array]) -> None:
    arrays = {name: gradient for name, gradient in grads.items() if isinstance(gradient, np.ndarray)}
    faults = {
        "no arrays": [f"{name} {type(grads[name]).__name__}" for name in grads if name not in arrays],
        "not floating-point": [f"{n} {g.dtype}" for n, g in arrays.items() if not np.issubdtype(g.dtype, np.floating)],
        "read-only": [name for name, gradient in arrays.items() if not gradient.flags.writeable],
    }
    listed = "; ".join(f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names)
    if listed:
        raise InputError(f"the gradients cannot be clipped: {listed}")


def _has_rows(array: Array) -> bool:
    """Whether it lies in memory row after row, so that its blocks of rows are views of it."""
    return array.ndim > 0 and array.size > 0 and array.flags.c_contiguous


def _sum_of_squares(array: Array) -> float:
    if not _has_rows(array):
        return float(np.vdot(array, array))
    return sum(over_rows(lambda block: float(np.vdot(block, block)), array))
