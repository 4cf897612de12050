"""Checks of gradients and other tensors: gradient checks, comparisons, and a record of each operation."""

from numpygpt.checks.gradients import Report, gradcheck

__all__ = ["Report", "gradcheck"]
