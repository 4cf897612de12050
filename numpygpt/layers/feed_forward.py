"""The position-wise feed-forward network (Vaswani et al. 2017, arXiv:1706.03762, section 3.3), with GELU.

    x        (..., D)     input
    hidden   (..., 4 D)   inside
    y        (..., D)     output

    (1)  hidden = x @ W0ᵀ + b0
    (2)  activated = gelu(hidden)                  `activation` says in which form
    (3)  y = activated @ W2ᵀ + b2
"""

from typing import Any, NamedTuple

from numpygpt.layers import parameters as p
from numpygpt.layers import projection
from numpygpt.numerics import casting
from numpygpt.numerics.autocast import EXACT, Precision
from numpygpt.ops import gelu, gelu_erf
from numpygpt.shapes import Array, Inexact
from numpygpt.tree import Trained, any_trained, everything, nowhere, within
from numpygpt.watch import Watch, unwatched

#: The operation of each form of GELU, by the name that `GPTConfig` has for it.
ACTIVATIONS = {"gelu_tanh": gelu, "gelu_erf": gelu_erf}


class Saved(NamedTuple):
    expand: Any
    activation: str
    gelu: gelu.Saved | gelu_erf.Saved | casting.Saved
    contract: Any
    parameters: p.FeedForward


def forward(
    x: Inexact[Array, "*rows D"],
    parameters: p.FeedForward,
    *,
    activation: str = "gelu_tanh",
    wants_x: bool = True,
    precision: Precision = EXACT,
    trained: Trained = everything,
    watch: Watch = unwatched,
) -> tuple[Inexact[Array, "*rows D"], Saved]:
    expand, _, contract = parameters.layers
    trained0, trained2 = within(trained, "layers.0"), within(trained, "layers.2")
    hidden, expanded = projection.forward(  # (1)
        x, expand, precision=precision, wants_x=wants_x, trained=trained0
    )
    watch("layers.0", hidden)
    activated, bent = casting.forward(ACTIVATIONS[activation], precision.gelu, hidden)  # (2)
    watch("layers.1", activated)
    wants_activated = wants_x or any_trained(expand, trained0)
    y, contracted = projection.forward(  # (3)
        activated, contract, precision=precision, wants_x=wants_activated, trained=trained2
    )
    watch("layers.2", y)
    return y, Saved(expanded, activation, bent, contracted, parameters)


class Gradients(NamedTuple):
    x: Inexact[Array, "... D"] | None
    parameters: p.FeedForward


def backward(d_y: Inexact[Array, "*rows D"], saved: Saved, *, watch: Watch = unwatched) -> Gradients:
    watch("d_layers.2", d_y)
    d_activated, d_contract = projection.backward(d_y, saved.contract)  # undoes (3)
    if d_activated is None:
        return Gradients(None, p.FeedForward((nowhere(saved.parameters.layers[0]), (), d_contract)))
    watch("d_layers.1", d_activated)
    d_hidden = casting.backward(ACTIVATIONS[saved.activation], d_activated, saved.gelu).x  # undoes (2)
    watch("d_layers.0", d_hidden)
    d_x, d_expand = projection.backward(d_hidden, saved.expand)  # undoes (1)
    return Gradients(d_x, p.FeedForward((d_expand, (), d_contract)))
