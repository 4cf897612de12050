"""The training run in PyTorch: how it computes, its backend of the training loop, and what it shows."""
