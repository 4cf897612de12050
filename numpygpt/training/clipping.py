"""Clipping of the gradients' common norm."""

import math
from collections.abc import Mapping

import numpy as np

from numpygpt.errors import InputError
from numpygpt.parallel import over_rows
from numpygpt.shapes import Array


def clip_grad_norm(grads: Mapping[str, Array], max_norm: float) -> float:
    """Scale all gradients, in place, so that their common Euclidean norm is at most max_norm; returns the norm before.

    As torch.nn.utils.clip_grad_norm_ (Pascanu et al. 2013, arXiv:1211.5063, section 3.2): one factor
    max_norm / (norm + 1e-6) for every tensor, where that is below 1.

    Raises InputError, changing nothing, where the norm is not finite, and for a max_norm that is not positive.
    """
    if not max_norm > 0:
        raise InputError(f"max_norm is {max_norm}; expected a positive number")
    norm = math.sqrt(sum(_sum_of_squares(gradient) for gradient in grads.values()))
    if not math.isfinite(norm):
        bad = [name for name, gradient in grads.items() if not np.isfinite(gradient).all()]
        raise InputError(f"the gradients' norm is {norm}: not finite in {', '.join(bad) or 'the sum of their squares'}")
    factor = max_norm / (norm + 1e-6)
    if factor < 1:
        for gradient in grads.values():
            over_rows(lambda block: np.multiply(block, factor, out=block), gradient)
    return norm


def _sum_of_squares(array: Array) -> float:
    return sum(over_rows(lambda block: float(np.vdot(block, block)), array))
