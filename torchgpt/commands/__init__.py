"""The commands that torchgpt brings to `numpygpt`."""
