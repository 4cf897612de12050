"""What each process of a scheme would hold of a model, found without processes and without memory.

The model is built and shared by the code that a run uses, on PyTorch's meta device, in a group of processes that
PyTorch only pretends to have.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist

from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.model.scheme import Scheme
from torchgpt.parallel import plans, slices
from torchgpt.parallel.grid import Grid
from torchgpt.parallel.team import TIME_LIMIT


class Held(NamedTuple):
    """What a process holds of a parameter.

    shape   of its slice
    bytes   that the slice takes
    """

    shape: tuple[int, ...]
    bytes: int


def held_by(rank: int, config: GPTConfig, scheme: Scheme, dtype: torch.dtype = torch.float32) -> dict[str, Held]:
    """{name: what the process of that rank holds} of each parameter of its part.

    Raises InputError for a scheme that the model cannot be shared by, for a rank that is not among its processes, and
    in a process that has joined a real group.
    """
    plans.check(scheme, config)
    if not 0 <= rank < scheme.size:
        raise InputError(f"rank {rank} is no process of {scheme}; expected a number from 0 to {scheme.size - 1}")
    with pretended_group(rank, scheme.size):
        part = plans.shared_part(config, scheme, Grid(scheme, "cpu", TIME_LIMIT), dtype)
        pieces = {name: slices.local(parameter) for name, parameter in part.model.named_parameters()}
    return {name: Held(tuple(piece.shape), piece.numel() * piece.element_size()) for name, piece in pieces.items()}


@contextmanager
def pretended_group(rank: int, size: int) -> Iterator[None]:
    """Within the `with`, PyTorch takes this process for the one of that rank; exchanges do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the kind of group, too

    if dist.is_initialized():
        raise InputError("this process has joined others; what a scheme holds is found in a process that has not")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()
