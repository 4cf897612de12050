"""Trees of arrays."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from numpygpt.shapes import Array


def named(tree: Any, path: str = "") -> Iterator[tuple[str, Array]]:
    """The arrays of a tree with their names, in order; absent ones (None) are left out."""
    if isinstance(tree, np.ndarray):
        yield path, tree
    elif tree is not None:
        for name, child in zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True):
            yield from named(child, f"{path}.{name}" if path else str(name))


def mapped(function: Callable[[Array], Any], tree: Any) -> Any:
    """The tree with `function` applied to each of its arrays."""
    if isinstance(tree, np.ndarray):
        return function(tree)
    if tree is None:
        return None
    children = [mapped(function, child) for child in tree]
    return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)
