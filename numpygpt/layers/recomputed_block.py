"""A transformer block that saves its input alone, and computes its forward again in the backward.

This costs one more forward, and spares the memory for the activations of all blocks except one (Chen et al. 2016,
arXiv:1604.06174). The same functions get the same values, so the gradients are those of `transformer_block`, bit for
bit.
"""

from typing import Any, NamedTuple

from numpygpt.layers import parameters as p
from numpygpt.layers import transformer_block
from numpygpt.layers.transformer_block import Gradients
from numpygpt.shapes import Array, Inexact
from numpygpt.watch import Watch, unwatched


class Saved(NamedTuple):
    x: Inexact[Array, "B T D"]
    parameters: p.TransformerBlock
    options: dict[str, Any]


def forward(
    x: Inexact[Array, "B T D"], parameters: p.TransformerBlock, *, watch: Watch = unwatched, **options: Any
) -> tuple[Inexact[Array, "B T D"], Saved]:
    """The options are `transformer_block.forward`'s."""
    y, _ = transformer_block.forward(x, parameters, watch=watch, **options)
    return y, Saved(x, parameters, options)


def backward(d_y: Inexact[Array, "B T D"], saved: Saved, *, watch: Watch = unwatched) -> Gradients:
    _, again = transformer_block.forward(saved.x, saved.parameters, **saved.options)
    return transformer_block.backward(d_y, again, watch=watch)
