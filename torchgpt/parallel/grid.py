"""The grid of pp x ddp x fsdp x tp processes: where this process stands, and the groups along each axis."""

from datetime import timedelta

import numpy as np
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from numpygpt.model.scheme import Scheme

#: The axes from the slowest to the fastest. The processes of tp exchange most, and are neighbors on one machine.
AXES = ("pp", "ddp", "fsdp", "tp")


class Grid:
    """This process's place among the processes of a scheme.

    mesh       PyTorch's mesh of the processes, with the axes AXES
    position   {axis: number of this process along it}
    """

    def __init__(self, scheme: Scheme, device_type: str, time_limit: float) -> None:
        self.scheme = scheme
        numbers = np.arange(scheme.size).reshape([getattr(scheme, axis) for axis in AXES])
        self.position = dict(zip(AXES, _where(numbers, dist.get_rank()), strict=True))
        groups = [_group_along(index, numbers, time_limit) for index in range(len(AXES))]
        self.mesh = DeviceMesh.from_group(groups, device_type, mesh=numbers, mesh_dim_names=AXES)

    def group(self, axis: str) -> dist.ProcessGroup:
        """The processes that differ from this one in their number along the axis only, and this one."""
        return self.mesh.get_group(axis)

    @property
    def data_rank(self) -> int:
        """Which share of a batch's rows this process computes."""
        return self.position["ddp"] * self.scheme.fsdp + self.position["fsdp"]


def _where(numbers: np.ndarray, rank: int) -> list[int]:
    return [int(index) for index in np.argwhere(numbers == rank)[0]]


def _group_along(index: int, numbers: np.ndarray, time_limit: float) -> dist.ProcessGroup:
    """This process's group along an axis. All processes make all groups, in the same order, as PyTorch requires."""
    lines = np.moveaxis(numbers, index, -1).reshape(-1, numbers.shape[index])
    groups = [dist.new_group(line.tolist(), timedelta(seconds=time_limit)) for line in lines]
    return next(group for group, line in zip(groups, lines, strict=True) if dist.get_rank() in line)
