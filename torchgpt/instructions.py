"""The book's batches of instructions on tensors (chapter 7)."""

from collections.abc import Sequence

import torch
from jaxtyping import Integer
from torch import Tensor

from numpygpt.data import book_instructions
from numpygpt.shapes import IGNORE_INDEX


def custom_collate_fn(
    batch: Sequence[Sequence[int]],
    pad_token_id: int = book_instructions.PAD_TOKEN_ID,
    ignore_index: int = IGNORE_INDEX,
    allowed_max_length: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Integer[Tensor, "B T"], Integer[Tensor, "B T"]]:
    """Inputs and targets, int64 and on the device, as `numpygpt.custom_collate_fn` makes them."""
    inputs, targets = book_instructions.custom_collate_fn(batch, pad_token_id, ignore_index, allowed_max_length)
    return torch.tensor(inputs, device=device), torch.tensor(targets, device=device)
