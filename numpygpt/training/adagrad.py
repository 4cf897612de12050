"""Adagrad."""

from collections.abc import Mapping, Sequence

import numpy as np

from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import Array
from numpygpt.training.groups import Group
from numpygpt.training.optimizer import Optimizer, Rates, Zeros, in_memory
from numpygpt.tree import Trained, everything


class Adagrad(Optimizer):
    """Adagrad: the gradient is divided by the root of the sum of all its squares, as torch.optim.Adagrad does it.

    Duchi, Hazan & Singer 2011 (Journal of Machine Learning Research 12, figure 1 with diagonal matrices). For every
    parameter p with gradient g:

        (1)  g <- g + weight_decay p         the gradient of weight_decay p² / 2
        (2)  s <- s + g²                     the sum, which never becomes smaller
        (3)  p <- p - lr g / (sqrt(s) + eps)

    The steps of a weight become shorter the more gradient it has had. That suits rare tokens, whose embeddings keep
    long steps. PyTorch's lr_decay is left out, because a schedule (`numpygpt.training.schedules`) does that.

    eps            keeps (3) from dividing by zero for a weight that has had no gradient yet
    weight_decay   lambda of the L2 penalty

    The defaults are PyTorch's. `Optimizer` describes the other arguments and the errors.
    """

    kind = "adagrad"
    settings = ("lr", "eps", "weight_decay")
    kinds = ("sum",)

    eps: float

    def __init__(
        self,
        model: GPTModel | Mapping[str, Array],
        lr: float = 1e-2,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        groups: Sequence[Group] = (),
        *,
        trained: Trained = everything,
        zeros: Zeros = in_memory,
    ) -> None:
        values = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        super().__init__(model, values, groups, trained=trained, zeros=zeros)

    def update(self, rates: Rates, p: Array, g: Array, *moments: Array) -> None:
        """See `Optimizer`."""
        (s,) = moments
        g = g + rates.weight_decay * p  # (1)
        s += g * g  # (2)
        p -= rates.lr * g / (np.sqrt(s) + self.eps)  # (3)
