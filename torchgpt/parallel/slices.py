"""Between whole tensors and the slices that processes hold of them."""

from collections.abc import Collection

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, as a plain tensor in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_gradient(parameter: nn.Parameter) -> Tensor | None:
    """What this process holds of the parameter's gradient, cut as the parameter is, as a plain tensor."""
    gradient = parameter.grad
    if isinstance(gradient, DTensor) and isinstance(parameter, DTensor):
        return gradient.redistribute(placements=parameter.placements).to_local()
    return gradient


def slice_of(whole: Tensor, like: Tensor) -> Tensor:
    """This process's slice of a whole tensor, cut as `like` is, on its device and in its dtype."""
    whole = whole.to(like.device, like.dtype)
    if not isinstance(like, DTensor):
        return whole
    # every process has the whole tensor, so nothing has to be sent
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


def distributed(piece: Tensor, like: Tensor) -> Tensor:
    """The tensor of which each process has a piece, cut as `like` is: PyTorch's DTensor, or the piece itself."""
    if not isinstance(like, DTensor):
        return piece
    return DTensor.from_local(
        piece, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def whole_of(piece: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which each process has a piece, cut as `like` is. All processes that cut it call this."""
    tensor = distributed(piece, like)
    if not isinstance(tensor, DTensor):
        return tensor
    placements = list(tensor.placements)
    for axis in range(len(placements)):  # the axis that was cut last comes first
        placements[axis] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    return tensor.to_local()


def axes_of(tensor: Tensor) -> tuple[str, ...]:
    """The axes of the grid along which the tensor is cut."""
    if not isinstance(tensor, DTensor):
        return ()
    names = tensor.device_mesh.mesh_dim_names or ()
    return tuple(name for name, how in zip(names, tensor.placements, strict=True) if not how.is_replicate())


def sum_over(group: dist.ProcessGroup, tensors: Collection[Tensor]) -> None:
    """Replace each tensor by its sum over the processes of the group."""
    sums = [dist.all_reduce(tensor, group=group, async_op=True) for tensor in tensors]
    for work in sums:
        work.wait()
