"""The projections of a tree of parameters: found, replaced, and given the dropout masks of their paths of low rank."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, get_args

from numpygpt.layers import parameters as p
from numpygpt.random.masks import RandomSource, draw_keep_mask
from numpygpt.shapes import Array, Bool
from numpygpt.tree import children, with_children

PROJECTIONS = get_args(p.Projection)


class Path(NamedTuple):
    """A path of low rank: the name of the projection that has it, and its own."""

    projection: str
    name: str


def projections(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The names and nodes of the tree's projections, in the order of the tree."""
    if isinstance(tree, PROJECTIONS):
        yield path, tree
    elif isinstance(tree, tuple | Mapping):
        for name, child in children(tree).items():
            yield from projections(child, f"{path}.{name}" if path else name)


def with_projections(change: Callable[[str, Any], Any], tree: Any, path: str = "") -> Any:
    """The tree with `change(name, node)` in the place of each projection; what does not change is the tree's own."""
    if isinstance(tree, PROJECTIONS):
        return change(path, tree)
    if not isinstance(tree, tuple | Mapping):  # a leaf
        return tree
    before = children(tree)
    after = {
        name: with_projections(change, child, f"{path}.{name}" if path else name) for name, child in before.items()
    }
    return tree if all(after[name] is child for name, child in before.items()) else with_children(tree, after)


def without_paths(node: p.Projection) -> p.Linear | p.QuantizedLinear:
    """The projection alone, without the paths of low rank beside it."""
    return node.base if isinstance(node, p.LoRA) else node


def with_base(node: p.Projection, base: p.Linear | p.QuantizedLinear) -> p.Projection:
    """The projection with another base, beside the paths of low rank that it has."""
    return node._replace(base=base) if isinstance(node, p.LoRA) else base


def with_masks(tree: Any, masks: Mapping[Path, Bool[Array, "B T ..."]]) -> Any:
    """The tree whose paths of low rank drop what these masks do not keep."""
    if not masks:
        return tree

    def masked(projection: str, node: Any) -> Any:
        kept = {path.name: mask for path, mask in masks.items() if path.projection == projection}
        return node._replace(keep=kept) if kept else node

    return with_projections(masked, tree)


def draw_masks_of_paths(rng: RandomSource, tree: Any, B: int, T: int) -> dict[Path, Bool[Array, "B T ..."]]:
    """Masks for a batch (B, T), in the order of the projections and of their paths. Without dropout there is none."""
    drawn = {
        Path(projection, name): draw_keep_mask(rng, (B, T, node.lora_A[name].weight.shape[1]), rate)
        for projection, node in projections(tree)
        if isinstance(node, p.LoRA) and not node.merged
        for name, rate in node.drop_rates.items()
    }
    return {path: mask for path, mask in drawn.items() if mask is not None}
