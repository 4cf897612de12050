"""Watching the intermediates of a run. Parity reports and attention maps both rest on this one mechanism.

A *watch* is any function `watch(name, array)`. Every forward and backward calls it with each named intermediate, in the
order of computation: an activation `x` in the forward, and its gradient `d_x` in the backward. The arrays are the
computation's own, and nothing changes them afterwards, so a watch may keep them without a copy. The name of a tensor is
the path of the PyTorch module that outputs it:

    activations = {}
    model.forward(in_idx, watch=activations.__setitem__)
    activations["trf_blocks.0.att.attn_weights"]                         # (B, H, T, T)

The PyTorch twin calls a watch with its own tensors in the same way, under the same names.
"""

from collections.abc import Callable
from typing import Any

Watch = Callable[[str, Any], None]


def unwatched(name: str, array: Any) -> None:
    """The watch that does nothing; it is the default everywhere."""


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
