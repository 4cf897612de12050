"""Whether gradients and tensors are right: the records of the operations, gradient checks, comparisons, planted bugs."""
