"""The model: its configuration, its parameters, the body, and `GPTModel`, PyTorch's face."""

from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel

__all__ = ["GPTConfig", "GPTModel"]
