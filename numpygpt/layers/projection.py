"""A projection of features: the type of its parameter node says how it is applied.

    Linear   y = x @ Wᵀ + b, the operation `linear`

    x   (..., D)   input
    y   (..., F)   output

Another kind of node, such as one with a low-rank side path, becomes another case of the two functions here. The option
`wants_x` says whether the gradient of x will be asked for; `trained` says which leaves of the node get one.
"""

from typing import Any, NamedTuple

from numpygpt.layers import parameters as p
from numpygpt.ops import linear
from numpygpt.shapes import Array, Inexact
from numpygpt.tree import Trained, everything, wanted


class Gradients(NamedTuple):
    x: Inexact[Array, "... D"] | None
    parameters: p.Linear


def forward(
    x: Inexact[Array, "*rows D"], parameters: p.Linear, *, wants_x: bool = True, trained: Trained = everything
) -> tuple[Inexact[Array, "*rows F"], Any]:
    match parameters:
        case p.Linear(weight, bias):
            return linear.forward(x, weight, bias, wanted=wanted(trained, "weight", "bias", x=wants_x))
    raise TypeError(f"a projection's parameters are a {type(parameters).__name__}; expected a Linear")


def backward(d_y: Inexact[Array, "*rows F"], saved: Any) -> Gradients:
    match saved:
        case linear.Saved():
            d_x, *d_parameters = linear.backward(d_y, saved)
            return Gradients(d_x, p.Linear._make(d_parameters))
    raise TypeError(f"a projection saved a {type(saved).__name__}; expected what `forward` returned")
