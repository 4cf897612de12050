"""Logits by PyTorch, on whatever device it has, for the protocols of `numpygpt.evaluation`."""

import numpy as np
import torch

from numpygpt.errors import InputError
from numpygpt.evaluation.scores import LogitsOf
from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import Array
from torchgpt.bridge import to_torch


def logits_on(numpy_model: GPTModel, device: str | None = None) -> LogitsOf:
    """A function from token ids (B, T) to logits (B, T, V) of the model's dtype, computed on a device.

    device   by PyTorch's name: "cpu", "cuda", "cuda:1", "mps"; None: "cuda" if there is one, otherwise "cpu"

    Raises InputError for a device that PyTorch does not know or does not have.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = to_torch(numpy_model, attention="sdpa").to(torch.device(name))
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"PyTorch cannot compute on the device {name!r}: {reason:.160}") from error

    @torch.inference_mode()
    def logits_of(in_idx: Array) -> Array:
        logits: Array = model(torch.from_numpy(np.asarray(in_idx)).to(name)).cpu().numpy()
        return logits

    return logits_of
