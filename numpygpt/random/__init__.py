"""PyTorch's random streams in NumPy, and the dropout masks drawn from them."""
