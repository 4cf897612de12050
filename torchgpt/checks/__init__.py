"""How far NumPy's tensors are from PyTorch's, and how far rounding alone may take them."""
