"""Checks of NumPy's tensors against PyTorch's: how far they are apart, and how far rounding alone may move them."""
