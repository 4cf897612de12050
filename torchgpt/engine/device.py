"""The device that a run computes on."""

import os

import torch

from numpygpt.errors import InputError


def may_be_gpu(name: str) -> bool:
    """Whether the `--device` of this name is one of CUDA's here."""
    return name in ("auto", "cuda") and torch.cuda.is_available()


def device_of(name: str) -> torch.device:
    """PyTorch's device for a `--device`. Each process of a machine gets the GPU that torchrun numbers for it.

    Raises InputError for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise InputError(
                f"there is no CUDA device here (PyTorch {torch.__version__}): use --device cpu, or install a PyTorch "
                f"with CUDA and NVIDIA's driver"
            )
        number, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if number >= there:
            raise InputError(
                f"process {number} of this machine has no GPU: the machine has {there}; start at most {there} "
                f"processes on it (torchrun --nproc-per-node)"
            )
        torch.cuda.set_device(number)
        return torch.device("cuda", number)
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("there is no Apple GPU here for --device mps: use --device cpu")
    return torch.device(name)


def used_memory(device: torch.device) -> int:
    """The most bytes that tensors took on a GPU so far, or that the process took in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
