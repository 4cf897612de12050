"""A training run that several processes compute together, on PyTorch's own distributed engine.

`team` joins the processes, `grid` arranges them, `plans` shares a model among them, and `model` is what a backend of
the training loop computes with, in one process or many.
"""
