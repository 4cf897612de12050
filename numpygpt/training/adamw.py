"""AdamW."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.parallel import over_rows
from numpygpt.shapes import Array


class AdamW:
    """Adam with decoupled weight decay, as torch.optim.AdamW does it.

    Loshchilov & Hutter 2019 (arXiv:1711.05101, algorithm 2). For every parameter p with gradient g, at step
    t = 1, 2, ...:

        (1)  p <- p - lr weight_decay p               the decay is not part of the gradient
        (2)  m <- beta1 m + (1 - beta1) g             running mean of the gradient
        (3)  v <- beta2 v + (1 - beta2) g²            running mean of its square
        (4)  p <- p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    The divisions by 1 - beta^t undo the pull of m and v towards their start at zero. eps is
    added after the correction of v.

    model          a GPTModel, or a {name: float array} of what is to be trained; `step` changes its arrays in place
    lr             learning rate; may be set between steps (`optimizer.lr = ...`)
    betas          (beta1, beta2), each in [0, 1)
    eps            keeps (4) from dividing by zero
    weight_decay   pull towards zero, a share of lr

    The defaults are PyTorch's. Raises InputError for values out of range.
    """

    def __init__(
        self,
        model: GPTModel | Mapping[str, Array],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise InputError(f"{name} is {value}; expected a number of 0 or more")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"betas are {betas}; expected two numbers in [0, 1)")
        self.parameters = dict(model if isinstance(model, Mapping) else model.named_parameters())
        self.lr, self.betas, self.eps, self.weight_decay = lr, tuple(betas), eps, weight_decay
        self.steps = 0
        self.exp_avg = {name: np.zeros_like(array) for name, array in self.parameters.items()}
        self.exp_avg_sq = {name: np.zeros_like(array) for name, array in self.parameters.items()}

    def step(self, grads: Mapping[str, Array]) -> None:
        """Update every parameter by its gradient. `grads` needs exactly the parameters' names and shapes."""
        self._refuse_other_names_or_shapes(grads)
        self.steps += 1
        beta1, beta2 = self.betas
        decay = 1 - self.lr * self.weight_decay
        step_size = self.lr / (1 - beta1**self.steps)
        correction2 = math.sqrt(1 - beta2**self.steps)

        def block(p: Array, g: Array, m: Array, v: Array) -> None:
            p *= decay  # (1)
            m += (1 - beta1) * (g - m)  # (2)
            v *= beta2
            v += (1 - beta2) * g * g  # (3)
            denominator = np.sqrt(v)
            denominator /= correction2
            denominator += self.eps
            np.divide(m, denominator, out=denominator)
            denominator *= step_size
            p -= denominator  # (4)

        for name, parameter in self.parameters.items():
            over_rows(block, parameter, grads[name], self.exp_avg[name], self.exp_avg_sq[name])

    def state_dict(self) -> dict[str, Any]:
        """The step count, the moments (the optimizer's own arrays) and the hyper-parameters."""
        return {
            "step": self.steps,
            "lr": self.lr,
            "betas": list(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; the moments are copied."""
        for moments in ("exp_avg", "exp_avg_sq"):
            _refuse_other_tensors(moments, state[moments], self.parameters)
        self.steps, self.lr, self.betas = state["step"], state["lr"], tuple(state["betas"])
        self.eps, self.weight_decay = state["eps"], state["weight_decay"]
        for name in self.parameters:
            self.exp_avg[name][...] = state["exp_avg"][name]
            self.exp_avg_sq[name][...] = state["exp_avg_sq"][name]

    def _refuse_other_names_or_shapes(self, grads: Mapping[str, Array]) -> None:
        _refuse_other_tensors("gradients", grads, self.parameters)


def _refuse_other_tensors(what: str, given: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    misshaped = [
        f"{name} {given[name].shape}, expected {array.shape}"
        for name, array in expected.items()
        if name in given and given[name].shape != array.shape
    ]
    if missing or unexpected or misshaped:
        raise InputError(
            f"{what} do not fit the parameters: missing {missing}, unexpected {unexpected}, misshaped {misshaped}"
        )
