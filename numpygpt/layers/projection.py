"""A projection of features: the type of its parameter node says how it is applied.

    Linear            y = x @ Wᵀ + b, the operation `linear`
    QuantizedLinear   the same with a packed W that has no gradient, the operation `quantized_linear`
    LoRA              y = base(x) + Σ s (dropout(x) @ Aᵀ) @ Bᵀ over its paths, the operations `dropout` and `lora`

    x   (..., D)   input
    y   (..., F)   output

`precision` says in which format the products run (`numpygpt.numerics.autocast`). Then a quantized W is dequantized and
rounded to it, and a path of low rank is one operation: the R numbers between its two products are not rounded.

In a LoRA, x has one use in the base and one in each path, so its gradient is the sum of theirs.

Another kind of node becomes another case of the two functions here. The option `wants_x` says whether the gradient of x
will be asked for; `trained` says which leaves of the node get one.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from numpygpt.layers import parameters as p
from numpygpt.numerics import casting, schemes
from numpygpt.numerics.autocast import EXACT, Precision
from numpygpt.ops import dropout, linear, lora, quantized_linear
from numpygpt.shapes import Array, Inexact
from numpygpt.tree import Trained, everything, wanted

#: The kinds of nodes, for a message.
EXPECTED = "Linear, a QuantizedLinear or a LoRA"


class LoRASaved(NamedTuple):
    """What the base saved, and what the dropout and the matrices of each path did."""

    base: Any
    paths: Mapping[str, tuple[dropout.Saved, lora.Saved | casting.Saved]]
    parameters: p.LoRA


class Gradients(NamedTuple):
    x: Inexact[Array, "... D"] | None
    parameters: p.Projection


def forward(
    x: Inexact[Array, "*rows D"],
    parameters: p.Projection,
    *,
    precision: Precision = EXACT,
    wants_x: bool = True,
    trained: Trained = everything,
) -> tuple[Inexact[Array, "*rows F"], Any]:
    match parameters:
        case p.Linear(weight, bias):
            leaves = wanted(trained, "weight", "bias", x=wants_x)
            return casting.forward(linear, precision.linear, x, weight, bias, wanted=leaves)
        case p.QuantizedLinear(weight, bias):
            leaves = wanted(trained, "bias", x=wants_x)
            if precision.linear is not None:
                return casting.forward(linear, precision.linear, x, schemes.dequantize(weight), bias, wanted=leaves)
            return quantized_linear.forward(x, weight, bias, wanted=leaves)
        case p.LoRA(base, merged=True):
            return forward(x, base, precision=precision, wants_x=wants_x, trained=trained)
        case p.LoRA():
            return _with_paths(x, parameters, precision, wants_x, trained)
    raise TypeError(f"a projection's parameters are a {type(parameters).__name__}; expected a {EXPECTED}")


def backward(d_y: Inexact[Array, "*rows F"], saved: Any) -> Gradients:
    match casting.own(saved):
        case linear.Saved():
            d_x, *d_parameters = casting.backward(linear, d_y, saved)
            return Gradients(d_x, p.Linear._make(d_parameters))
        case quantized_linear.Saved():
            d_x, _, d_bias = quantized_linear.backward(d_y, saved)
            return Gradients(d_x, p.QuantizedLinear._make((None, d_bias)))
        case LoRASaved():
            return _through_paths(d_y, saved)
    raise TypeError(f"a projection saved a {type(saved).__name__}; expected what `forward` returned")


def _with_paths(
    x: Array, parameters: p.LoRA, precision: Precision, wants_x: bool, trained: Trained
) -> tuple[Array, LoRASaved]:
    y, base = forward(x, parameters.base, precision=precision, wants_x=wants_x, trained=trained)
    paths = {}
    for name, scale in parameters.scales.items():
        leaves = {"A": f"lora_A.{name}.weight", "B": f"lora_B.{name}.weight"}
        wanted_here = {matrix for matrix, leaf in leaves.items() if trained(leaf)} | ({"x"} if wants_x else set())
        dropped, kept = dropout.forward(x, parameters.keep.get(name), drop_rate=parameters.drop_rates[name])
        matrices = parameters.lora_A[name].weight, parameters.lora_B[name].weight
        side, low_rank = casting.forward(
            lora, precision.linear, dropped, *matrices, scale=scale, wanted=wanted_here
        )
        y = np.add(y, side, out=y if np.result_type(y, side) == y.dtype else None)
        paths[name] = kept, low_rank
    return y, LoRASaved(base, paths, parameters)


def _through_paths(d_y: Array, saved: LoRASaved) -> Gradients:
    d_x, d_base = backward(d_y, saved.base)
    d_A, d_B = {}, {}
    for name, (kept, low_rank) in saved.paths.items():
        d_dropped, *d_matrices = casting.backward(lora, d_y, low_rank)
        d_A[name], d_B[name] = (p.Linear._make((d_matrix, None)) for d_matrix in d_matrices)
        if d_dropped is not None:
            d_x += dropout.backward(d_dropped, kept).x
    return Gradients(d_x, saved.parameters._replace(base=d_base, lora_A=d_A, lora_B=d_B))
