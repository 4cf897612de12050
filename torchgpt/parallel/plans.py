"""How the modules of a part are shared among processes, by PyTorch's own means.

- tp: the products of a block come in pairs. The first is shared by its outputs (heads, or hidden features), the second
  by its inputs, so that one sum over the processes ends the pair. Embedding and head are shared by rows, that is, by
  token ids. Norms, positions and the biases after a sum are the same in all processes.
- fsdp: each process keeps a slice of every parameter. Before a block computes, its parameters are gathered; after its
  backward, their gradients are summed, and each process gets its slice of them.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.model.scheme import Scheme
from torchgpt.parallel.grid import Grid
from torchgpt.parallel.part import Part, Stage, build_part


def check(scheme: Scheme, config: GPTConfig) -> None:
    """Raise InputError if PyTorch cannot share a model of this configuration so."""
    scheme.check(config)
    ids = -(-config.vocab_size // scheme.tp)
    if ids * (scheme.tp - 1) >= config.vocab_size:
        raise InputError(
            f"tp={scheme.tp} leaves a process without token ids: {config.vocab_size} are shared in slices of {ids}; "
            f"make tp smaller"
        )
    if scheme.tp > 1 and config.emb_dim % (scheme.fsdp * scheme.tp):
        raise InputError(
            f"fsdp={scheme.fsdp},tp={scheme.tp}: emb_dim {config.emb_dim} is not divisible by their product "
            f"{scheme.fsdp * scheme.tp}, so the slices would be uneven; make one of the two smaller"
        )


def shared_part(config: GPTConfig, scheme: Scheme, grid: Grid | None, dtype: torch.dtype, **how: Any) -> Part:
    """This process's part of the model, whose parameters are slices on the meta device: they take no memory.

    grid   of the scheme's processes; None: there is only this one
    how    what else `torchgpt.parallel.part.build_part` takes

    Raises InputError if the model cannot be shared so.
    """
    check(scheme, config)
    stage = Stage(grid.position["pp"], scheme.pp) if grid else Stage(0, 1)
    part = build_part(config, stage, dtype=dtype, **how)
    if grid is not None:
        share(part, grid)
    return part


def share(part: Part, grid: Grid) -> None:
    """Share a part along the axes tp and fsdp of the grid."""
    if grid.scheme.tp > 1:
        share_layers(part, grid.mesh["tp"])
        part.tie()
    if grid.scheme.fsdp > 1:
        share_parameters(part, grid.mesh["ddp", "fsdp"] if grid.scheme.ddp > 1 else grid.mesh["fsdp"])


def share_layers(part: Part, mesh: DeviceMesh) -> None:
    """Share every layer of the part along the mesh of tp."""
    block: Any  # a TransformerBlock; nn.ModuleDict does not know
    for block in part.model.trf_blocks.children():
        parallelize_module(block, mesh, _plan_of_a_block())
        block.att.num_heads //= mesh.size()
    plan: dict[str, ParallelStyle] = {}
    if part.stage.is_first:
        plan["tok_emb"] = RowwiseParallel(input_layouts=Replicate())
    if part.stage.is_last:
        plan["out_head"] = ColwiseParallel(output_layouts=Replicate())
    parallelize_module(part.model, mesh, plan)


def share_parameters(part: Part, mesh: DeviceMesh) -> None:
    """Keep a slice of each parameter in each process of the mesh: of fsdp, or of ddp and fsdp.

    Gradients are summed, never averaged: each process's loss is already a share of the mean over all targets. So the
    sum asks for no mean of the processes' own library. Gloo has none, and PyTorch may then return a sum in float32
    where float64 gets the mean (pytorch/pytorch#162338).
    """
    for module in (*part.model.trf_blocks.children(), part):
        sliced = fully_shard(module, mesh=mesh, shard_placement_fn=_axis_of_slices)
        sliced.set_gradient_divide_factor(1.0)  # of this module alone, not of those in it
        sliced.set_force_sum_reduction_for_comms(True)


def _plan_of_a_block() -> dict[str, ParallelStyle]:
    first = {f"att.{name}": ColwiseParallel() for name in ("W_query", "W_key", "W_value")}
    return {
        **first,
        "att.out_proj": RowwiseParallel(),
        "ff.layers.0": ColwiseParallel(),
        "ff.layers.2": RowwiseParallel(),
    }


def _axis_of_slices(parameter: nn.Parameter) -> Shard | None:
    """Along which axis fsdp slices a parameter: the second, if tp slices the first; None: the first, as ever."""
    if isinstance(parameter, DTensor) and parameter.ndim > 1 and parameter.placements[0] == Shard(0):
        return Shard(1)
    return None
