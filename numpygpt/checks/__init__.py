"""Whether gradients and tensors are right: gradient checks, comparisons, planted bugs."""
