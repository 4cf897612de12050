"""Checks of gradients and other tensors: gradient checks, comparisons, and a record of each operation."""
