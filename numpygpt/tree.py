"""Trees of arrays: parameters, and whatever has their shape.

A node is a NamedTuple with a field a child, a dict, or a tuple whose children are numbered; a leaf is an array. The
path of a leaf is its name: `trf_blocks.0.att.W_query.weight`. A child may be None, which stands for an array that is
not there.

A node may hold its arrays in another way than it shows them. It then has two methods of its own: `children()`, a dict
of its children by name, and `with_children(children)`, a node made of such a dict.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from numpygpt.shapes import Array

Trained = Callable[[str], bool]


def children(node: Any) -> dict[str, Any]:
    """The children of a node by name."""
    if hasattr(node, "children"):
        own: dict[str, Any] = node.children()
        return own
    if isinstance(node, Mapping):
        return dict(node)
    names = getattr(node, "_fields", map(str, range(len(node))))
    return dict(zip(names, node, strict=True))


def with_children(node: Any, by_name: Mapping[str, Any]) -> Any:
    """A node of the same kind with other children, given by the names of its own."""
    if hasattr(node, "with_children"):
        return node.with_children(by_name)
    if isinstance(node, Mapping):
        return dict(by_name)
    return node._make(by_name.values()) if hasattr(node, "_fields") else tuple(by_name.values())


def named(tree: Any, path: str = "") -> Iterator[tuple[str, Array]]:
    """The arrays of a tree with their names, in order; absent ones (None) are left out."""
    if isinstance(tree, np.ndarray):
        yield path, tree
    elif tree is not None:
        for name, child in children(tree).items():
            yield from named(child, f"{path}.{name}" if path else name)


def mapped(function: Callable[[Array], Any], tree: Any) -> Any:
    """The tree with `function` applied to each of its arrays."""
    return mapped_by_name(lambda _, array: function(array), tree)


def mapped_by_name(function: Callable[[str, Array], Any], tree: Any, path: str = "") -> Any:
    """The tree with `function` applied to the name of each array and the array."""
    if isinstance(tree, np.ndarray):
        return function(path, tree)
    if tree is None:
        return None
    return with_children(
        tree,
        {
            name: mapped_by_name(function, child, f"{path}.{name}" if path else name)
            for name, child in children(tree).items()
        },
    )


def nowhere(tree: Any) -> Any:
    """The tree with None in place of each array: the gradient of what is not trained."""
    return mapped(lambda array: None, tree)


# Which leaves are trained


def everything(name: str) -> bool:
    """The default: each leaf is trained, and its gradient is computed."""
    return True


def nothing(name: str) -> bool:
    """No leaf is trained: a forward saves nothing, as inference wants it."""
    return False


def within(trained: Trained, prefix: str) -> Trained:
    """Which leaves of a part of the tree are trained, by their names within the part."""
    if trained is everything or trained is nothing:
        return trained
    return lambda name: trained(f"{prefix}.{name}")


def any_trained(tree: Any, trained: Trained) -> bool:
    """Whether any leaf of the tree is trained."""
    if trained is nothing:
        return False
    return any(trained(name) for name, _ in named(tree))


def wanted(trained: Trained, *names: str, x: bool) -> set[str]:
    """Which of an operation's arguments get a gradient: those of these parameters that are trained, and its input x."""
    return {name for name in names if trained(name)} | ({"x"} if x else set())
