"""The number format of a run's products, and the scale that keeps fp16's gradients from vanishing.

    none   the parameters' own, float32 or float64
    fp32   the parameters' own, for a run that is resumed and had another one
    tf32   float32 whose products have factors rounded to 10 bits after the point, on NVIDIA's tensor cores
    bf16   products in bfloat16, by autocast: softmax, norms and losses stay float32
    fp16   the same in float16, whose smallest numbers are too large for many gradients

In fp16 the loss is multiplied by a scale before the backward, and the gradients are divided by it before anything looks
at them (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2). A step whose gradients overflow is left out, and the
scale is halved; after GROWTH_INTERVAL steps without an overflow it is doubled. These are the defaults of PyTorch's
torch.amp.GradScaler. That one looks for an overflow in the gradients of one process; here the norm of all gradients is
looked at, which is the same in all processes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from numpygpt.errors import InputError
from numpygpt.sections import value_of

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE = 2.0**16
SMALLEST_SCALE = 1.0
GROWTH_INTERVAL = 2000

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


class LossScale:
    """The scale of the loss, which adapts itself; 1 for ever unless the precision is fp16."""

    def __init__(self, precision: str | None) -> None:
        self.adapts = precision == "fp16"
        self.value = FIRST_SCALE if self.adapts else 1.0
        self.steps_without_overflow = 0

    def overflowed(self) -> None:
        """Halve the scale. InputError if the gradients overflow at every scale."""
        if self.value <= SMALLEST_SCALE:
            raise InputError(f"the gradients overflow fp16 at every scale down to {SMALLEST_SCALE:g}; use bf16")
        self.value /= 2
        self.steps_without_overflow = 0

    def fitted(self) -> None:
        """Count a step without an overflow, and double the scale if there were enough of them."""
        if not self.adapts:
            return
        self.steps_without_overflow += 1
        if self.steps_without_overflow == GROWTH_INTERVAL:
            self.value *= 2
            self.steps_without_overflow = 0

    def state(self) -> dict[str, Any]:
        """What is saved, in types that JSON has; nothing without fp16."""
        return {"value": self.value, "steps_without_overflow": self.steps_without_overflow} if self.adapts else {}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned. InputError for anything else.

        A run that has not been in fp16 before begins with the first scale, and without fp16 nothing is loaded.
        """
        if not state:
            return
        value, steps = value_of(state, "value", float), value_of(state, "steps_without_overflow", int)
        if not (0 < value < float("inf") and 0 <= steps < GROWTH_INTERVAL):
            raise InputError(f"the loss scale is {value} after {steps} steps; expected a positive number")
        if self.adapts:
            self.value, self.steps_without_overflow = value, steps
