"""Adapters of low rank: added to a model, merged into its weights, taken out again, removed.

An adapter is a path of low rank beside some of a model's projections (`numpygpt.ops.lora`), under one name:

    y = x @ Wᵀ + b + s (dropout(x) @ Aᵀ) @ Bᵀ

A model may have several adapters. Their outputs are added up.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.layers import parameters as p
from numpygpt.layers.projections import projections, with_projections, without_paths
from numpygpt.model.gpt import GPTModel
from numpygpt.numerics.schemes import dequantize
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array

#: What the name of an adapter is if none is given: peft's.
DEFAULT = "default"
#: The projections that the paper adapts in most of its experiments (section 4.2).
QUERIES_AND_VALUES = ("W_query", "W_value")
#: The word for every projection of the blocks, which QLoRA adapts (Dettmers et al. 2023, arXiv:2305.14314, section 4).
ALL_LINEAR = "all-linear"

#: What a path is multiplied by, of its rank R and α.
#:
#: "lora" is the paper's α/R: the sum over R features grows with R, and the division keeps α's meaning. "rslora" is
#: Kalajdzievski's α/√R, at which neither the output nor the gradient shrinks as R grows. "book" is α alone, as the
#: book's appendix E has it: with it, a rank twice as high needs half the α.
SCALES: Mapping[str, Callable[[float, int], float]] = {
    "lora": lambda alpha, rank: alpha / rank,
    "rslora": lambda alpha, rank: alpha / math.sqrt(rank),
    "book": lambda alpha, rank: alpha,
}


def add_lora(
    model: GPTModel,
    rank: int = 8,
    alpha: float = 16.0,
    *,
    targets: str | Sequence[str] = QUERIES_AND_VALUES,
    dropout: float = 0.0,
    seed: int | TorchGenerator = 123,
    name: str = DEFAULT,
    scaling: str = "lora",
) -> GPTModel:
    """The model with an adapter, which alone is trained: every other parameter is frozen.

    rank      R, from 1 to the smaller side of each matrix
    alpha     α > 0
    targets   the projections that get a path: their names, or the last parts of their names, such as "W_query" or
              "ff.layers.0"; or "all-linear", every projection of the blocks
    dropout   the rate at which elements of a path's input are dropped in training
    seed      of A, uniform in ±1/√D, as peft draws it (`kaiming_uniform_` with a = √5), in the order of the
              projections. B is zero, so the model computes what it computed before.
    name      the adapter's; a model may have several
    scaling   "lora": α/R; "rslora": α/√R; "book": α

    Raises InputError for a rank, an α, a rate, a scaling or a target that cannot be, for a name that is taken, and for
    a model with an adapter that is merged.
    """
    refuse_values(rank, alpha, dropout, scaling, name)
    refuse_merged(model)
    rank, alpha, dropout = int(rank), float(alpha), float(dropout)
    generator = seed if isinstance(seed, TorchGenerator) else TorchGenerator(seed)
    names = chosen(model, targets)

    def adapted(projection: str, node: Any) -> Any:
        if projection not in names:
            return node
        outputs, inputs = shape_of(node)
        _refuse_rank(rank, projection, outputs, inputs)
        A, B = np.empty((rank, inputs), model.dtype), np.zeros((outputs, rank), model.dtype)
        bound = 1 / math.sqrt(inputs)
        generator.uniform(A.shape, -bound, bound, out=A)
        return with_path(projection, node, Side(name, A, B, SCALES[scaling](alpha, rank), dropout))

    parameters = with_projections(adapted, model.parameters)
    return model.with_parameters(parameters, frozen=model.named_parameters())


class Side(NamedTuple):
    """A path beside one projection."""

    name: str
    A: Array
    B: Array
    scale: float
    drop_rate: float


def with_path(projection: str, node: Any, side: Side) -> p.LoRA:
    """The node of the projection of this name with one more path. InputError for a taken name."""
    if not isinstance(node, p.LoRA):
        node = p.LoRA(node, {}, {}, {}, {})
    if side.name in node.scales:
        raise InputError(f"{projection} already has an adapter {side.name!r}; give the other one another name")
    return node._replace(
        lora_A={**node.lora_A, side.name: p.Linear(side.A)},
        lora_B={**node.lora_B, side.name: p.Linear(side.B)},
        scales={**node.scales, side.name: side.scale},
        drop_rates={**node.drop_rates, side.name: side.drop_rate},
    )


def merge_lora(model: GPTModel) -> GPTModel:
    """The model with s B @ A added to each weight: it computes the same, as fast as without adapters.

    A merged model has the parameters of a model without adapters. A quantized weight becomes a whole one, because the
    sum has other values than its codes can say; taking the adapter out again leaves it whole. If the head is tied to
    the embedding and has an adapter, it is tied no longer. Merging a merged model changes nothing.

    Raises InputError if there is no adapter.
    """
    _refuse_without(model)

    def merged(projection: str, node: Any) -> Any:
        if not isinstance(node, p.LoRA) or node.merged:
            return node
        weight = whole_weight(node.base, model.dtype)
        for delta in _deltas(node):
            weight += delta
        return node._replace(base=p.Linear(weight, node.base.bias), merged=True)

    return _model_with(model, with_projections(merged, model.parameters))


def unmerge_lora(model: GPTModel) -> GPTModel:
    """The inverse of `merge_lora`, except for rounding: the weights are what they were, and the adapters beside them.

    A weight that was quantized stays whole, and a head that was tied stays apart. A model that is not merged does not
    change.

    Raises InputError if there is no adapter.
    """
    _refuse_without(model)

    def unmerged(projection: str, node: Any) -> Any:
        if not isinstance(node, p.LoRA) or not node.merged:
            return node
        weight = node.base.weight.copy()
        for delta in _deltas(node):
            weight -= delta
        return node._replace(base=node.base._replace(weight=weight), merged=False)

    return _model_with(model, with_projections(unmerged, model.parameters))


def remove_lora(model: GPTModel) -> GPTModel:
    """The model without adapters, its weights as they are: with what was merged into them.

    What was frozen stays frozen. Raises InputError if there is no adapter.
    """
    _refuse_without(model)
    bare = with_projections(lambda _, node: without_paths(node), model.parameters)
    return _model_with(model, bare)


def adapter_names(model: GPTModel) -> list[str]:
    """The names of the model's adapters, in the order in which they were added."""
    return list(dict.fromkeys(name for _, node in paths_of(model) for name in node.scales))


def paths_of(model: GPTModel) -> list[tuple[str, p.LoRA]]:
    """The names and nodes of the projections that have a path."""
    return [(name, node) for name, node in projections(model.parameters) if isinstance(node, p.LoRA)]


def shape_of(projection: Any) -> tuple[int, int]:
    """The outputs and inputs (F, D) of a projection."""
    outputs, inputs = without_paths(projection).weight.shape
    return outputs, inputs


def whole_weight(projection: p.Linear | p.QuantizedLinear, dtype: Any) -> Array:
    """The weight of a projection without paths, as an array of its own."""
    if isinstance(projection, p.QuantizedLinear):
        return dequantize(projection.weight, dtype)
    return projection.weight.copy()


def _deltas(node: p.LoRA) -> list[Array]:
    """What each path adds to the weight: s B @ A."""
    return [scale * (node.lora_B[name].weight @ node.lora_A[name].weight) for name, scale in node.scales.items()]


def _model_with(model: GPTModel, parameters: p.GPT) -> GPTModel:
    """The model with these parameters, tied only if they are. Weights that were no parameters before are frozen."""
    head = without_paths(parameters.out_head).weight
    tied = model.config.tie_weights and head is parameters.tok_emb.weight
    changed = model.with_parameters(parameters, tie_weights=tied)
    new = changed.named_parameters().keys() - model.named_parameters().keys()
    return changed.with_parameters(parameters, frozen=model.frozen | {name for name in new if ".lora_" not in name})


def chosen(model: GPTModel, targets: str | Sequence[str]) -> set[str]:
    """The names of the projections that the targets name. InputError for a target that names none."""
    names = [name for name, _ in projections(model.parameters)]
    if targets == ALL_LINEAR:
        return {name for name in names if name.startswith("trf_blocks.")}
    found: set[str] = set()
    for target in [targets] if isinstance(targets, str) else targets:
        matched = {name for name in names if name == target or name.endswith(f".{target}")}
        if not matched:
            ends = dict.fromkeys(name.split(".", 2)[-1] for name in names)
            raise InputError(
                f"the target {target!r} is no projection of the model; expected one of {', '.join(ends)}, the last "
                f"part of such a name, or {ALL_LINEAR!r}"
            )
        found |= matched
    if not found:
        raise InputError(f"there are no targets; expected names of projections, or {ALL_LINEAR!r}")
    return found


def refuse_merged(model: GPTModel) -> None:
    """InputError if any adapter of the model is merged."""
    merged = [name for name, node in paths_of(model) if node.merged]
    if merged:
        raise InputError(f"{merged[0]} has a merged adapter; take it out with unmerge_lora before another is added")


def _refuse_without(model: GPTModel) -> None:
    if not paths_of(model):
        raise InputError("the model has no adapter; add one with add_lora, or load one")


def _refuse_rank(rank: int, projection: str, outputs: int, inputs: int) -> None:
    if rank > min(outputs, inputs):
        raise InputError(
            f"rank is {rank}, but the matrix of {projection} is ({outputs}, {inputs}); "
            f"expected from 1 to {min(outputs, inputs)}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def refuse_values(rank: Any, alpha: Any, dropout: Any, scaling: str, name: str) -> None:
    """InputError for what no adapter can have."""
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or rank < 1:
        raise InputError(f"rank is {rank!r}; expected an integer of 1 or more")
    if not (_is_number(alpha) and 0 < alpha < float("inf")):
        raise InputError(f"alpha is {alpha!r}; expected a positive number")
    if not (_is_number(dropout) and 0 <= dropout < 1):
        raise InputError(f"dropout is {dropout!r}; expected a rate from 0 to below 1")
    if scaling not in SCALES:
        raise InputError(f"scaling is {scaling!r}; expected one of {', '.join(map(repr, SCALES))}")
    if not name or "." in name:
        raise InputError(f"the adapter's name is {name!r}; expected a text without dots")
