"""RMSprop."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import Array
from numpygpt.training.groups import Group
from numpygpt.training.optimizer import Optimizer, Rates, Zeros, in_memory
from numpygpt.tree import Trained, everything


class RMSprop(Optimizer):
    """RMSprop: the gradient is divided by the root of a running mean of its square, as torch.optim.RMSprop does it.

    Tieleman & Hinton 2012 (Neural Networks for Machine Learning, lecture 6e); the centered form is that of Graves 2013
    (arXiv:1308.0850, equations 38 to 41). For every parameter p with gradient g:

        (1)  g <- g + weight_decay p                      the gradient of weight_decay p² / 2
        (2)  v <- alpha v + (1 - alpha) g²                running mean of the square
        (3)  a <- alpha a + (1 - alpha) g                 if centered: running mean of the gradient
             w = v - a²                                   if centered: the variance; w = v otherwise
        (4)  g <- g / (sqrt(w) + eps)
        (5)  b <- momentum b + g                          if there is momentum; b = g otherwise
        (6)  p <- p - lr b

    eps is added to the root, not to w. The variance in (3) is never negative. If rounding makes it so, 0 takes its
    place, where PyTorch has NaN.

    alpha          share of v that is left after a step, in [0, 1)
    eps            keeps (4) from dividing by zero
    weight_decay   lambda of the L2 penalty
    momentum       share of b that is left after a step, in [0, 1)
    centered       whether (3) subtracts the square of the mean

    The defaults are PyTorch's. `Optimizer` describes the other arguments and the errors.
    """

    kind = "rmsprop"
    settings = ("lr", "alpha", "eps", "weight_decay", "momentum", "centered")
    kinds = ("square_avg", "grad_avg", "momentum_buffer")

    alpha: float
    eps: float
    momentum: float
    centered: bool

    def __init__(
        self,
        model: GPTModel | Mapping[str, Array],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        groups: Sequence[Group] = (),
        *,
        centered: bool = False,
        trained: Trained = everything,
        zeros: Zeros = in_memory,
    ) -> None:
        values = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
        }
        super().__init__(model, values, groups, trained=trained, zeros=zeros)

    @classmethod
    def kinds_of(cls, name: str, n_axes: int, values: Mapping[str, Any]) -> tuple[str, ...]:
        """See `Optimizer`."""
        kept = {"square_avg": True, "grad_avg": values["centered"], "momentum_buffer": values["momentum"] > 0}
        return tuple(kind for kind in cls.kinds if kept[kind])

    def update(self, rates: Rates, p: Array, g: Array, *moments: Array) -> None:
        """See `Optimizer`."""
        v, *others = moments
        g = g + rates.weight_decay * p  # (1)
        v *= self.alpha
        v += (1 - self.alpha) * g * g  # (2)
        w = v
        if self.centered:
            a = others.pop(0)
            a += (1 - self.alpha) * (g - a)
            w = np.maximum(v - a * a, 0)  # (3)
        g = g / (np.sqrt(w) + self.eps)  # (4)
        for b in others:
            b *= self.momentum
            b += g  # (5)
            g = b
        p -= rates.lr * g  # (6)
