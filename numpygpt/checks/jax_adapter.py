"""Functions of JAX as pairs of forward and backward on NumPy arrays, in float64.

`jax.vjp` gives the backward. So a `jax.custom_vjp` is checked by its own rule, and any other function by JAX's.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from numpygpt.checks.pairs import Pair as NumPyPair
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


def checkers() -> dict[str, Callable[[Any, Any, Any], str]]:
    """JAX's own gradient check in reverse mode with its default tolerances, for `numpygpt.checks.experiments`."""
    import jax  # noqa: F401  # who asks is told at once if it is not installed

    return {"jax": _checked_by_jax}


def _checked_by_jax(forward: Any, backward: Any, inputs: Any) -> str:
    """What jax.test_util.check_grads says of a pair of NumPy's functions; empty if it passes."""
    import jax
    from jax.test_util import check_grads

    numpy_pair = NumPyPair(forward, backward, inputs)
    names = list(numpy_pair.leaves)
    kinds = [jax.ShapeDtypeStruct(leaf.shape, np.float64) for leaf in numpy_pair.leaves.values()]
    outputs = jax.ShapeDtypeStruct(numpy_pair.run().outputs.shape, np.float64)

    def run(*leaves: Any) -> Array:
        return numpy_pair.run(dict(zip(names, map(np.asarray, leaves), strict=True))).outputs

    def gradients(cotangent: Any, *leaves: Any) -> list[Array]:
        ran = numpy_pair.run(dict(zip(names, map(np.asarray, leaves), strict=True)))
        found, _ = numpy_pair.gradients(numpy_pair.call_backward(np.asarray(cotangent), ran)[0])
        return [np.zeros_like(numpy_pair.leaves[name]) if found[name] is None else found[name] for name in names]

    @jax.custom_vjp
    def function(*leaves: Any) -> Any:
        return jax.pure_callback(run, outputs, *leaves)

    function.defvjp(
        lambda *leaves: (function(*leaves), leaves),
        lambda leaves, cotangent: tuple(jax.pure_callback(gradients, kinds, cotangent, *leaves)),
    )
    with jax.enable_x64(True):
        try:
            check_grads(function, tuple(numpy_pair.leaves.values()), order=1, modes=("rev",))
        except AssertionError as error:
            return " ".join(str(error).split())
    return ""


def _on_numpy(tree: Any) -> Any:
    """The tree with NumPy's arrays in the place of JAX's, and None in the place of the gradient of an integer."""
    import jax

    def leaf(array: Any) -> Array | None:
        return None if array.dtype == jax.dtypes.float0 else np.array(array)

    return jax.tree.map(leaf, tree)
