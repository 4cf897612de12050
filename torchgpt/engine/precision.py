"""The number format of a run's products.

    none   the parameters' own, float32 or float64
    fp32   the parameters' own, for a run that is resumed and had another one
    tf32   float32 whose products have factors rounded to 10 bits after the point, on NVIDIA's tensor cores
    bf16   products in bfloat16, by autocast: softmax, norms and losses stay float32
    fp16   the same in float16, whose smallest numbers are too large for many gradients

In fp16 the loss has a scale (`numpygpt.training.loss_scale`). PyTorch's torch.amp.GradScaler looks for an overflow in
the gradients of one process; here the norm of all gradients is looked at, which is the same in all processes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from numpygpt.errors import InputError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Autocast = Callable[[], AbstractContextManager[object]]


def autocast_of(precision: str | None, device: torch.device, dtype: str) -> Autocast:
    """Makes the context in which forwards are computed. For tf32 it also tells PyTorch so, for the whole process.

    Raises InputError for a precision that the device does not have, and for one beside float64.
    """
    if precision is None:
        return nullcontext
    if dtype != "float32":
        raise InputError(f"--precision {precision} rounds products of float32, and --dtype is {dtype}; leave out one")
    if precision == "fp32":
        return nullcontext
    if not _has(device, precision):
        raise InputError(f"the device {device.type} has no {precision}: choose another --precision, such as fp32")
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
        return nullcontext
    return partial(torch.autocast, device.type, DTYPES[precision])


def _has(device: torch.device, precision: str) -> bool:
    if precision == "tf32":
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":
        return precision == "fp16" or torch.backends.mps.is_macos_or_newer(14, 0)
    return True
