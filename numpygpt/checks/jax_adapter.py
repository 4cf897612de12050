"""Functions of JAX as pairs of forward and backward on NumPy arrays, in float64.

`jax.vjp` gives the backward. So a `jax.custom_vjp` is checked by its own rule, and any other function by JAX's.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from numpygpt.shapes import Array

Pair = tuple[Callable[..., Any], Callable[..., Any]]


def pair_of(target: Any) -> Pair | None:
    """The pair of a `jax.custom_vjp`, a `jax.custom_jvp` or a `jax.jit`; None for anything else."""
    import jax

    if isinstance(target, jax.custom_vjp | jax.custom_jvp) or type(target).__module__.startswith("jaxlib"):
        return pair(target)
    return None


def pair(function: Callable[..., Any]) -> Pair:
    """The pair of a function of JAX's arrays, which computes in float64."""
    import jax

    def forward(*inputs: Any) -> tuple[Any, Any]:
        with jax.enable_x64(True):
            if any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(inputs)):
                return _on_numpy(function(*inputs)), None
            output, vjp = jax.vjp(function, *inputs)
            return _on_numpy(output), (vjp, jax.tree.structure(output))

    def backward(d_output: Any, saved: Any) -> Any:
        vjp, structure = saved
        with jax.enable_x64(True):
            cotangent = jax.tree.unflatten(structure, jax.tree.leaves(d_output))
            return _on_numpy(vjp(cotangent))

    forward.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return forward, backward


def _on_numpy(tree: Any) -> Any:
    """The tree with NumPy's arrays in the place of JAX's, and None in the place of the gradient of an integer."""
    import jax

    def leaf(array: Any) -> Array | None:
        return None if array.dtype == jax.dtypes.float0 else np.array(array)

    return jax.tree.map(leaf, tree)
