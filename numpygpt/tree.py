"""Trees of arrays: the parameters, and whatever is built like them.

A node is a NamedTuple with a field for each child, a dict, or a tuple whose children are numbered. A leaf is an array.
The name of a leaf is its path: `trf_blocks.0.att.W_query.weight`. A child may be None, which stands for an array that
is absent.

A node may hold its arrays in another way than it shows them. It then has two methods of its own: `children()` returns a
dict of its children by name, and `with_children(children)` returns a node that is made of such a dict.
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
    """A node of the same kind with other children. `by_name` has them under the names of the node's own children."""
    if hasattr(node, "with_children"):
        return node.with_children(by_name)
    if isinstance(node, Mapping):
        return dict(by_name)
    return node._make(by_name.values()) if hasattr(node, "_fields") else tuple(by_name.values())


def named(tree: Any, path: str = "") -> Iterator[tuple[str, Array]]:
    """The names and arrays of a tree's leaves, in order; absent arrays (None) are left out."""
    if isinstance(tree, np.ndarray):
        yield path, tree
    elif tree is not None:
        for name, child in children(tree).items():
            yield from named(child, f"{path}.{name}" if path else name)


def mapped(function: Callable[[Array], Any], tree: Any) -> Any:
    """The tree with `function(array)` in the place of each array."""
    return mapped_by_name(lambda _, array: function(array), tree)


def mapped_by_name(function: Callable[[str, Array], Any], tree: Any, path: str = "") -> Any:
    """The tree with `function(name, array)` in the place of each array."""
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
    """The tree with None in the place of each array. This is the gradient of a tree that is not trained."""
    return mapped(lambda array: None, tree)


# Which leaves are trained


def everything(name: str) -> bool:
    """The default, by which each leaf is trained: its gradient is computed."""
    return True


def nothing(name: str) -> bool:
    """By this, no leaf is trained, so a forward saves nothing. Inference uses it."""
    return False


def within(trained: Trained, prefix: str) -> Trained:
    """A function that says which leaves of a part of the tree are trained, by their names within the part.

    prefix   the path of the part
    """
    if trained is everything or trained is nothing:
        return trained
    return lambda name: trained(f"{prefix}.{name}")


def any_trained(tree: Any, trained: Trained) -> bool:
    """Whether any leaf of the tree is trained."""
    if trained is nothing:
        return False
    return any(trained(name) for name, _ in named(tree))


def wanted(trained: Trained, *names: str, x: bool) -> set[str]:
    """The names of an operation's arguments that get a gradient.

    names   its parameters, of which the trained ones get a gradient
    x       whether its input x gets one
    """
    return {name for name in names if trained(name)} | ({"x"} if x else set())
