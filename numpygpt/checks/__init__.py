"""Checks of gradients and other tensors: gradient checks, comparisons, and a record of each operation."""

from numpygpt.checks.gradient_report import Report
from numpygpt.checks.gradients import gradcheck

__all__ = ["Report", "gradcheck"]
