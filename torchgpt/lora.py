"""The book's adapters of low rank as modules (appendix E).

`torchgpt.adapters` has the adapters of NumPy's models, by the library peft.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from numpygpt.adapt.adapters import DEFAULT, SCALES, refuse_values


class LoRALayer(nn.Module):
    """A path of low rank, s (x @ A) @ B, with A (in_dim, rank) and B (rank, out_dim), which is zero at first.

    scaling   "lora": s = α/R, as in the paper and in the book's code today; "book": s = α, as in the printed book

    Dividing by R keeps the size of the output, a sum over R features, so that α and the learning rate need no change if
    R changes. A is uniform in ±1/√R, because `kaiming_uniform_` takes its second axis for the inputs. Raises InputError
    for a rank, an α or a scaling that cannot be.
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, alpha: int | float, scaling: str = "lora") -> None:
        super().__init__()
        refuse_values(rank, alpha, 0.0, scaling, DEFAULT)
        self.A = nn.Parameter(torch.empty(in_dim, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.B = nn.Parameter(torch.zeros(rank, out_dim))
        self.alpha, self.rank = alpha, rank
        self.scale = SCALES[scaling](alpha, rank)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows F"]:
        return self.scale * (x @ self.A @ self.B)


class LinearWithLoRA(nn.Module):
    """A linear layer with a path of low rank beside it, of the layer's dtype and device. Arguments as `LoRALayer`'s."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: int | float, scaling: str = "lora") -> None:
        super().__init__()
        self.linear = linear
        self.lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha, scaling).to(linear.weight)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows F"]:
        return self.linear(x) + self.lora(x)


def replace_linear_with_lora(model: nn.Module, rank: int, alpha: int | float, scaling: str = "lora") -> None:
    """Put a `LinearWithLoRA` in the place of each `nn.Linear` of the model, also of its head, in place.

    Nothing is frozen: as in the book, `requires_grad` of the parameters is set to False before.
    """
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):
            setattr(model, name, LinearWithLoRA(module, rank, alpha, scaling))
        else:
            replace_linear_with_lora(module, rank, alpha, scaling)
