"""Whether gradients and tensors are right: gradient checks, comparisons, and a record of each operation."""
