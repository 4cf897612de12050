"""Lion and Muon in PyTorch, by the formulas of `numpygpt.training.lion` and `numpygpt.training.muon`.

torch.optim has no Lion. Its Muon orthogonalizes in bfloat16, whatever the dtype of the parameters is, so that a run in
float64 could not be compared with NumPy's. These compute in the dtype of the parameters.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from numpygpt.training.muon import COEFFICIENTS, ITERATIONS, SMALLEST_NORM


class Lion(torch.optim.Optimizer):
    """Lion. The state of a parameter is exp_avg."""

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float], weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure, which nobody needs here
        """Take a step with the parameters' gradients; there is no closure."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                direction = torch.lerp(p.grad, m, beta1).sign_()
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(direction, alpha=-group["lr"])
                m.mul_(beta2).add_(p.grad, alpha=1 - beta2)


class Muon(torch.optim.Optimizer):
    """Muon, for matrices alone. The state of a parameter is momentum_buffer."""

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float, *, nesterov: bool, weight_decay: float = 0.0
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure, which nobody needs here
        """Take a step with the matrices' gradients; there is no closure."""
        for group in self.param_groups:
            momentum = group["momentum"]
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - momentum)
                update = orthogonalized(p.grad.lerp(buffer, momentum) if group["nesterov"] else buffer)
                rows, cols = p.shape
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1, rows / cols) ** 0.5)


def orthogonalized(matrix: Tensor) -> Tensor:
    """`numpygpt.training.muon.orthogonalized`, of a matrix (rows, cols)."""
    rows, cols = matrix.shape
    x = matrix.mT if rows > cols else matrix
    x = x / x.norm().clamp(min=SMALLEST_NORM)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if rows > cols else x
