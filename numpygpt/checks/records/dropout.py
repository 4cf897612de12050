"""`dropout`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import dropout


def draw(source: Source) -> Call:
    """Draw an x of any shape, with a mask or without."""
    rate = source.drop_rate()
    x = source.normal(*source.rows(), source.size(6))
    return Call({"x": x, "keep": source.keep(x.shape, rate)}, {"drop_rate": rate})


def complex_step(source: Source) -> Mapping[str, Call]:
    """A call with a mask."""
    x = source.normal(2, 5, 12)
    return {"": Call({"x": x, "keep": source.rng.random(x.shape) < 0.7}, {"drop_rate": 0.3})}


SPECIAL = {"nothing kept": Call({"x": np.ones((2, 3)), "keep": np.zeros((2, 3), bool)}, {"drop_rate": 0.5})}

BUGS = (
    Bug(
        "dropout_gradient_scaled_by_p",
        "the backward divides by the rate, not by 1 - rate",
        "apex#816",
        "d_trf_blocks.1.ff.layers.2",
        ("gradients", "complex_step"),
        (
            Change(
                "ops.dropout:backward",
                "_kept_and_scaled(d_y, *saved)",
                "_kept_and_scaled(d_y, saved.keep, 1 - saved.drop_rate if saved.drop_rate else 0.0)",
            ),
        ),
    ),
    Bug(
        "dropout_gradient_without_mask",
        "the backward scales, but lets every element through",
        "numpy-ml's wrappers",
        "d_trf_blocks.1.ff.layers.2",
        ("gradients", "complex_step"),
        (
            Change(
                "ops.dropout:backward",
                "_kept_and_scaled(d_y, *saved)",
                "d_y if saved.keep is None else d_y / (1 - saved.drop_rate)",
            ),
        ),
    ),
)

RECORD = Record(dropout, draw, SPECIAL, complex_step, BUGS)
