"""What the scripts for a GPU share."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def device_name(device: str) -> str:
    """The name of a device "cuda" or "cpu", as a report gives it."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})"


@contextmanager
def precision_of_products(precision: str) -> Iterator[None]:
    """Within the `with`, products of float32 have this precision: "highest" for float32, "high" for TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
