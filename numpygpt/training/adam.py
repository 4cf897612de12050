"""Adam."""

from collections.abc import Mapping, Sequence

from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import Array
from numpygpt.training.adamw import AdamW
from numpygpt.training.groups import Group
from numpygpt.training.optimizer import Rates, Zeros, in_memory
from numpygpt.tree import Trained, everything


class Adam(AdamW):
    """Adam, with weight decay in the gradient (L2), as torch.optim.Adam does it.

    Kingma & Ba 2015 (arXiv:1412.6980, algorithm 1). For every parameter p with gradient g, at step t = 1, 2, ...:

        (1)  g <- g + weight_decay p                  the gradient of weight_decay p² / 2
        (2)  m <- beta1 m + (1 - beta1) g             running mean of the gradient
        (3)  v <- beta2 v + (1 - beta2) g²            running mean of its square
        (4)  p <- p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    (2) to (4) are those of AdamW. What (1) adds is divided by sqrt(v) in (4). So a weight with large gradients decays
    less than others, which is why AdamW keeps the decay out of the gradient.

    betas, eps     as AdamW's
    weight_decay   lambda of the L2 penalty; with 0, Adam and AdamW are the same

    The defaults are PyTorch's. `Optimizer` describes the other arguments and the errors.
    """

    kind = "adam"

    def __init__(
        self,
        model: GPTModel | Mapping[str, Array],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        groups: Sequence[Group] = (),
        *,
        trained: Trained = everything,
        zeros: Zeros = in_memory,
    ) -> None:
        super().__init__(model, lr, betas, eps, weight_decay, groups, trained=trained, zeros=zeros)

    def update(self, rates: Rates, p: Array, g: Array, *moments: Array) -> None:
        """See `Optimizer`."""
        g = g + rates.weight_decay * p  # (1)
        AdamW.update(self, Rates(rates.lr, 0.0), p, g, *moments)  # (2) to (4), without a decay of AdamW's
