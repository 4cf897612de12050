"""Stochastic gradient descent with momentum."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import Array
from numpygpt.training.groups import Group
from numpygpt.training.optimizer import Optimizer, Rates, Zeros, in_memory
from numpygpt.tree import Trained, everything


class SGD(Optimizer):
    """Stochastic gradient descent, with or without momentum, as torch.optim.SGD does it.

    Momentum is that of Sutskever et al. 2013 (ICML, "On the importance of initialization and momentum in deep
    learning", section 2), with the learning rate outside the momentum. For every parameter p with gradient g, at step
    t = 1, 2, ...:

        (1)  g <- g + weight_decay p                          the gradient of weight_decay p² / 2
        (2)  b <- g                                           at step 1
             b <- momentum b + (1 - dampening) g              at every later step
        (3)  g <- g + momentum b                              if nesterov: a look ahead, to where b will lead
             g <- b                                           otherwise
        (4)  p <- p - lr g

    Without momentum, (2) and (3) are left out, and nothing is kept. The first b is the whole gradient: dampening does
    not make it smaller.

    momentum       share of b that is left after a step, in [0, 1)
    dampening      share of the gradient that b does not take, in [0, 1)
    weight_decay   lambda of the L2 penalty
    nesterov       whether (3) looks ahead; it needs momentum, and no dampening

    The defaults are PyTorch's. `Optimizer` describes the other arguments and the errors.
    """

    kind = "sgd"
    settings = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
    kinds = ("momentum_buffer",)

    momentum: float
    dampening: float
    nesterov: bool

    def __init__(
        self,
        model: GPTModel | Mapping[str, Array],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        groups: Sequence[Group] = (),
        *,
        nesterov: bool = False,
        trained: Trained = everything,
        zeros: Zeros = in_memory,
    ) -> None:
        values = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(model, values, groups, trained=trained, zeros=zeros)

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """See `Optimizer`."""
        found = super().checked(values)
        if found["nesterov"] and (not found["momentum"] or found["dampening"]):
            raise InputError(
                f"nesterov with momentum {found['momentum']:g} and dampening {found['dampening']:g}; "
                f"expected a momentum above 0 and no dampening"
            )
        return found

    @classmethod
    def kinds_of(cls, name: str, n_axes: int, values: Mapping[str, Any]) -> tuple[str, ...]:
        """See `Optimizer`."""
        return cls.kinds if values["momentum"] else ()

    def update(self, rates: Rates, p: Array, g: Array, *moments: Array) -> None:
        """See `Optimizer`."""
        g = g + rates.weight_decay * p  # (1)
        for b in moments:
            if self.steps == 1:
                b[...] = g
            else:
                b *= self.momentum
                b += (1 - self.dampening) * g  # (2)
            g = g + self.momentum * b if self.nesterov else b  # (3)
        p -= rates.lr * g  # (4)
