"""Muon."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from numpygpt.model.gpt import GPTModel
from numpygpt.parallel import product
from numpygpt.shapes import Array, Inexact
from numpygpt.training.adamw import AdamW
from numpygpt.training.groups import Group
from numpygpt.training.optimizer import Optimizer, Rates, Zeros, in_memory
from numpygpt.tree import Trained, everything

#: The polynomial of a step of Newton and Schulz, and how many steps there are.
COEFFICIENTS = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
#: The smallest norm that a matrix is divided by.
SMALLEST_NORM = 1e-7


class Muon(AdamW):
    """Muon for the matrices inside the blocks, and AdamW for everything else.

    Jordan 2024 (https://kellerjordan.github.io/posts/muon/, and github.com/KellerJordan/Muon). For every matrix W
    (rows, cols) of a linear layer inside a block, with gradient G:

        (1)  B <- momentum B + (1 - momentum) G              running mean of the gradient
        (2)  U = (1 - momentum) G + momentum B               if nesterov: a look ahead; U = B otherwise
        (3)  O = orthogonalized(U)                           all singular values become about 1
        (4)  W <- W - lr weight_decay W
        (5)  W <- W - lr sqrt(max(1, rows / cols)) O

    A gradient of a matrix has a few large singular values, so that a step by the gradient itself moves W in a few
    directions. O has the same singular vectors, and moves W equally in all of them. The scale in (5) is the first of
    Jordan's, and torch.optim.Muon's "original". torch.optim.Muon computes (3) in bfloat16, and we in the dtype of W.

    Embeddings, the head, norms and biases are trained by AdamW, at the learning rate rest_lr_scale lr: an embedding is
    a table whose rows are used one at a time, and a vector has no singular values to speak of. By its name, a
    parameter is a matrix inside a block if it begins with "trf_blocks." and has two axes.

    lr             learning rate of the matrices
    momentum       share of B that is left after a step, in [0, 1)
    weight_decay   pull towards zero, a share of lr, of all parameters
    nesterov       whether (2) looks ahead
    betas, eps     AdamW's
    rest_lr_scale  the learning rate of AdamW, as a multiple of lr

    The defaults are Jordan's. `Optimizer` describes the other arguments and the errors.
    """

    kind = "muon"
    settings = ("lr", "momentum", "weight_decay", "nesterov", "betas", "eps", "rest_lr_scale")
    kinds = ("momentum_buffer", *AdamW.kinds)

    momentum: float
    nesterov: bool
    rest_lr_scale: float

    def __init__(
        self,
        model: GPTModel | Mapping[str, Array],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        groups: Sequence[Group] = (),
        *,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-10,
        rest_lr_scale: float = 0.015,
        trained: Trained = everything,
        zeros: Zeros = in_memory,
    ) -> None:
        values = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "betas": betas,
            "eps": eps,
            "rest_lr_scale": rest_lr_scale,
        }
        Optimizer.__init__(self, model, values, groups, trained=trained, zeros=zeros)

    @classmethod
    def kinds_of(cls, name: str, n_axes: int, values: Mapping[str, Any]) -> tuple[str, ...]:
        """See `Optimizer`."""
        return ("momentum_buffer",) if is_matrix_of_a_block(name, n_axes) else AdamW.kinds

    def update_parameter(self, name: str, rates: Rates, p: Array, g: Array, *moments: Array) -> None:
        """See `Optimizer`."""
        if is_matrix_of_a_block(name, p.ndim):
            self._update_matrix(rates, p, g.astype(p.dtype, copy=False), *moments)
        else:
            super().update_parameter(name, self._rest(rates), p, g, *moments)

    def _rest(self, rates: Rates) -> Rates:
        """The rates of what is left to AdamW."""
        return Rates(self.rest_lr_scale * rates.lr, rates.weight_decay)

    def _update_matrix(self, rates: Rates, p: Array, g: Array, b: Array) -> None:
        b += (1 - self.momentum) * (g - b)  # (1)
        u = (1 - self.momentum) * g + self.momentum * b if self.nesterov else b  # (2)
        o = orthogonalized(u)  # (3)
        p *= 1 - rates.lr * rates.weight_decay  # (4)
        rows, cols = p.shape
        p -= rates.lr * math.sqrt(max(1, rows / cols)) * o  # (5)


def is_matrix_of_a_block(name: str, n_axes: int) -> bool:
    """Whether the parameter of this name, with so many axes, is a matrix of a linear layer inside a block."""
    return name.startswith("trf_blocks.") and n_axes == 2


def orthogonalized(matrix: Inexact[Array, "rows cols"]) -> Inexact[Array, "rows cols"]:
    """A matrix with the singular vectors of this one, all of whose singular values are about 1 (0.7 to 1.2).

    Singular values that are very small beside the norm, below about 0.01 of it, come out smaller. It is the iteration
    of Newton and Schulz with the polynomial of Jordan 2024:

        (1)  X = M / ||M||                             in Frobenius' norm, so no singular value is above 1
        (2)  five times:  X <- a X + b (X X^T) X + c (X X^T)² X

    With X = P S Q^T, (2) is P (a S + b S³ + c S^5) Q^T. So each singular value goes its way by a polynomial that
    lifts small values quickly and holds those near 1 between 0.7 and 1.2. X X^T is the smaller of the two Gram matrices
    if X is not taller than wide, so a tall matrix is transposed before, and back afterwards.
    """
    rows, cols = matrix.shape
    x = matrix.T if rows > cols else matrix
    norm = math.sqrt(float(np.vdot(x, x)))
    x = x / max(norm, SMALLEST_NORM)  # (1)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = product(x, x.T)
        x = a * x + product(b * gram + c * product(gram, gram), x)  # (2)
    return x.T if rows > cols else x
