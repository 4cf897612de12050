"""Lion."""

from collections.abc import Mapping, Sequence

import numpy as np

from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import Array
from numpygpt.training.groups import Group
from numpygpt.training.optimizer import Optimizer, Rates, Zeros, in_memory
from numpygpt.tree import Trained, everything


class Lion(Optimizer):
    """Lion: every weight moves by lr, in the direction of a sign.

    Chen et al. 2023 (arXiv:2302.06675, algorithm 2). For every parameter p with gradient g:

        (1)  c = beta1 m + (1 - beta1) g               what the step follows
        (2)  p <- p - lr weight_decay p                the decay is not part of the gradient
        (3)  p <- p - lr sign(c)                       a c of 0 moves nothing
        (4)  m <- beta2 m + (1 - beta2) g              what is remembered

    c gives the new gradient more weight than m does, as beta1 is smaller than beta2. Because each sign has the size 1,
    steps are longer than Adam's: the paper (section 5) takes a learning rate 3 to 10 times smaller, and a weight decay
    larger by the same factor, so that lr weight_decay stays.

    betas          (beta1, beta2), each in [0, 1)
    weight_decay   pull towards zero, a share of lr

    The defaults are the paper's. `Optimizer` describes the other arguments and the errors.
    """

    kind = "lion"
    settings = ("lr", "betas", "weight_decay")
    kinds = ("exp_avg",)

    betas: tuple[float, float]

    def __init__(
        self,
        model: GPTModel | Mapping[str, Array],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        groups: Sequence[Group] = (),
        *,
        trained: Trained = everything,
        zeros: Zeros = in_memory,
    ) -> None:
        values = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(model, values, groups, trained=trained, zeros=zeros)

    def update(self, rates: Rates, p: Array, g: Array, *moments: Array) -> None:
        """See `Optimizer`."""
        (m,) = moments
        beta1, beta2 = self.betas
        c = beta1 * m + (1 - beta1) * g  # (1)
        p *= 1 - rates.lr * rates.weight_decay  # (2)
        p -= rates.lr * np.sign(c)  # (3)
        m *= beta2
        m += (1 - beta2) * g  # (4)
