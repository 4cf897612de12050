"""Watching the intermediates of a run: one mechanism behind traces, parity reports, attention maps and memory tables.

A *watch* is any function `watch(name, array)`. Every forward and backward tells it each named intermediate in the order
of computation: an activation `x` in the forward, its gradient `d_x` in the backward. The arrays are the computation's
own, and nothing changes them afterwards: a watch may keep them without a copy. Names are the paths of the PyTorch
modules that output the tensor:

    activations = {}
    model.forward(in_idx, watch=activations.__setitem__)
    activations["trf_blocks.0.att.attn_weights"]                         # (B, H, T, T)

PyTorch's twin tells a watch of its own tensors in the same way, under the same names.
"""

from collections.abc import Callable
from typing import Any

Watch = Callable[[str, Any], None]


def unwatched(name: str, array: Any) -> None:
    """The watch that does not look: the default everywhere."""


def under(watch: Watch, prefix: str) -> Watch:
    """The watch for a part of the model: `x` becomes `prefix.x`, and a gradient `d_x` becomes `d_prefix.x`."""
    if watch is unwatched:
        return unwatched

    def watch_part(name: str, array: Any) -> None:
        if name.startswith("d_"):
            watch(f"d_{prefix}.{name.removeprefix('d_')}", array)
        else:
            watch(f"{prefix}.{name}", array)

    return watch_part
