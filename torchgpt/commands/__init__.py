"""The commands that PyTorch's twin brings to `numpygpt`."""
