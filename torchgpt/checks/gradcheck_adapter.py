"""Functions of PyTorch as pairs of forward and backward on NumPy arrays, for `numpygpt.checks.gradcheck`.

    from numpygpt.checks import gradcheck
    from torchgpt.checks.gradcheck_adapter import pair

    print(gradcheck(*pair(MyFunction.apply), {"x": x}))

`numpygpt gradcheck module:MyFunction` finds this adapter by itself.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.autograd.gradcheck import GradcheckError, gradcheck

from numpygpt.checks.pairs import Pair as NumPyPair
from numpygpt.shapes import Array

Pair = tuple[Callable[..., Any], Callable[..., Any]]


def pair_of(target: Any) -> Pair | None:
    """The pair of a subclass of torch.autograd.Function; None for anything else."""
    if not (isinstance(target, type) and issubclass(target, torch.autograd.Function)):
        return None
    parameters = list(inspect.signature(target.forward).parameters.values())
    has_context = target.setup_context is torch.autograd.Function.setup_context
    forward, backward = pair(target.apply)
    forward.__signature__ = inspect.Signature(parameters[1:] if has_context else parameters)  # type: ignore[attr-defined]
    return forward, backward


def pair(function: Callable[..., Any]) -> Pair:
    """The pair of a function of tensors, differentiated by autograd. It returns a tensor or a tuple of tensors."""

    def forward(*inputs: Any) -> tuple[Any, Any]:
        given = [_tensor(value) for value in inputs]
        output = function(*given)
        outputs = output if isinstance(output, tuple) else (output,)
        arrays = tuple(tensor.detach().resolve_conj().numpy().copy() for tensor in outputs)
        return (arrays if isinstance(output, tuple) else arrays[0]), (given, outputs)

    def backward(d_output: Any, saved: Any) -> tuple[Any, ...]:
        given, outputs = saved
        d_outputs = d_output if isinstance(d_output, tuple) else (d_output,)
        used = [
            (tensor, torch.as_tensor(np.asarray(d_tensor)))
            for tensor, d_tensor in zip(outputs, d_outputs, strict=True)
            if tensor.requires_grad and d_tensor is not None
        ]
        leaves = [value for value in given if isinstance(value, torch.Tensor) and value.requires_grad]
        gradients: dict[int, torch.Tensor | None] = {}
        if used:
            roots, cotangents = zip(*used, strict=True)
            found = torch.autograd.grad(roots, leaves, cotangents, retain_graph=True, allow_unused=True)
            gradients = {id(leaf): gradient for leaf, gradient in zip(leaves, found, strict=True)}
        return tuple(_array(gradients.get(id(value))) for value in given)

    return forward, backward


def checkers() -> dict[str, Callable[[Any, Any, Any], str]]:
    """PyTorch's own gradient check with its default tolerances, for `numpygpt.checks.experiments`."""
    return {
        "torch slow": partial(_checked_by_torch, fast=False),
        "torch fast": partial(_checked_by_torch, fast=True),
    }


def _checked_by_torch(forward: Any, backward: Any, inputs: Any, *, fast: bool) -> str:
    """What torch.autograd.gradcheck says of a pair of NumPy's functions; empty if it passes."""
    pair = NumPyPair(forward, backward, inputs)
    names = list(pair.leaves)

    class Function(torch.autograd.Function):
        """The outputs, as one flat tensor, of the leaves."""

        @staticmethod
        def forward(ctx: Any, *leaves: torch.Tensor) -> torch.Tensor:
            arrays = (leaf.detach().numpy() for leaf in leaves)
            ctx.ran = pair.run(dict(zip(names, arrays, strict=True)))
            return torch.from_numpy(ctx.ran.outputs)

        @staticmethod
        def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[Any, ...]:
            returned, _ = pair.call_backward(cotangent.numpy(), ctx.ran)
            gradients, _ = pair.gradients(returned)
            return tuple(None if gradients[name] is None else torch.tensor(gradients[name]) for name in names)

    leaves = [torch.from_numpy(leaf.copy()).requires_grad_() for leaf in pair.leaves.values()]
    try:
        gradcheck(Function.apply, leaves, fast_mode=fast)
    except GradcheckError as error:
        return " ".join(str(error).split())
    return ""


def _tensor(value: Any) -> Any:
    """A NumPy array as a tensor, which requires a gradient if it is of floating-point or complex numbers."""
    if not isinstance(value, np.ndarray):
        return value
    tensor = torch.from_numpy(np.array(value))
    return tensor.requires_grad_(tensor.is_floating_point() or tensor.is_complex())


def _array(gradient: torch.Tensor | None) -> Array | None:
    return None if gradient is None else gradient.detach().numpy().copy()
