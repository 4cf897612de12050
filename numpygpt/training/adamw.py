"""AdamW."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import Array
from numpygpt.training.groups import Group
from numpygpt.training.optimizer import Optimizer, Rates, Zeros, in_memory
from numpygpt.tree import Trained, everything


class AdamW(Optimizer):
    """Adam with decoupled weight decay, as torch.optim.AdamW does it.

    Loshchilov & Hutter 2019 (arXiv:1711.05101, algorithm 2). For every parameter p with gradient g, at step
    t = 1, 2, ...:

        (1)  p <- p - lr weight_decay p               the decay is not part of the gradient
        (2)  m <- beta1 m + (1 - beta1) g             running mean of the gradient
        (3)  v <- beta2 v + (1 - beta2) g²            running mean of its square
        (4)  p <- p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    The divisions by 1 - beta^t undo the pull of m and v towards their start at zero. eps is
    added after the correction of v.

    betas          (beta1, beta2), each in [0, 1)
    eps            keeps (4) from dividing by zero for a weight that has had no gradient yet
    weight_decay   pull towards zero, a share of lr

    The defaults are PyTorch's. `Optimizer` describes the other arguments and the errors.
    """

    kind = "adamw"
    settings: ClassVar[tuple[str, ...]] = ("lr", "betas", "eps", "weight_decay")
    kinds: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    betas: tuple[float, float]
    eps: float

    def __init__(
        self,
        model: GPTModel | Mapping[str, Array],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        groups: Sequence[Group] = (),
        *,
        trained: Trained = everything,
        zeros: Zeros = in_memory,
    ) -> None:
        values = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(model, values, groups, trained=trained, zeros=zeros)

    @property
    def exp_avg(self) -> dict[str, Array]:
        """{name: m}."""
        return self.moments["exp_avg"]

    @property
    def exp_avg_sq(self) -> dict[str, Array]:
        """{name: v}."""
        return self.moments["exp_avg_sq"]

    def update(self, rates: Rates, p: Array, g: Array, *moments: Array) -> None:
        """See `Optimizer`."""
        m, v = moments
        beta1, beta2 = self.betas
        correction1 = 1 - beta1**self.steps
        correction2 = math.sqrt(1 - beta2**self.steps)
        p *= 1 - rates.lr * rates.weight_decay  # (1)
        m += (1 - beta1) * (g - m)  # (2)
        v *= beta2
        v += (1 - beta2) * g * g  # (3)
        denominator = np.sqrt(v)
        denominator /= correction2
        denominator += self.eps
        np.divide(m, denominator, out=denominator)
        denominator *= rates.lr / correction1
        p -= denominator  # (4)
