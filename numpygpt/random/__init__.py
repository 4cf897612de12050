"""PyTorch's random streams in NumPy, and the dropout masks drawn from them."""

from numpygpt.random.torch_generator import TorchGenerator

__all__ = ["TorchGenerator"]
