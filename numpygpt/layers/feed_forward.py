"""The position-wise feed-forward network (Vaswani et al. 2017, arXiv:1706.03762, section 3.3), with GELU.

    x        (..., D)     input
    hidden   (..., 4 D)   inside
    y        (..., D)     output

    (1)  hidden = x W0ᵀ + b0
    (2)  activated = gelu(hidden)
    (3)  y = activated W2ᵀ + b2
"""

from typing import NamedTuple

from numpygpt.layers import parameters as p
from numpygpt.ops import gelu, linear
from numpygpt.shapes import Array, Inexact
from numpygpt.watch import Watch, unwatched


class Saved(NamedTuple):
    expand: linear.Saved
    gelu: gelu.Saved
    contract: linear.Saved


def forward(
    x: Inexact[Array, "*rows D"], parameters: p.FeedForward, *, watch: Watch = unwatched
) -> tuple[Inexact[Array, "*rows D"], Saved]:
    expand, _, contract = parameters.layers
    hidden, expanded = linear.forward(x, *expand)  # (1)
    watch("layers.0", hidden)
    activated, bent = gelu.forward(hidden)  # (2)
    watch("layers.1", activated)
    y, contracted = linear.forward(activated, *contract)  # (3)
    watch("layers.2", y)
    return y, Saved(expanded, bent, contracted)


class Gradients(NamedTuple):
    x: Inexact[Array, "... D"]
    parameters: p.FeedForward


def backward(d_y: Inexact[Array, "*rows D"], saved: Saved, *, watch: Watch = unwatched) -> Gradients:
    watch("d_layers.2", d_y)
    d_activated, d_weight2, d_bias2 = linear.backward(d_y, saved.contract)  # undoes (3)
    watch("d_layers.1", d_activated)
    d_hidden = gelu.backward(d_activated, saved.gelu).x  # undoes (2)
    watch("d_layers.0", d_hidden)
    d_x, d_weight0, d_bias0 = linear.backward(d_hidden, saved.expand)  # undoes (1)
    return Gradients(d_x, p.FeedForward((p.Linear(d_weight0, d_bias0), (), p.Linear(d_weight2, d_bias2))))
