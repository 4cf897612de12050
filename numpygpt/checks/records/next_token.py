"""`next_token`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.objectives import next_token
from numpygpt.ops.cross_entropy import IGNORE_INDEX


def draw(source: Source) -> Call:
    """Draw targets some of which do not count."""
    B, T, V = source.size(3), source.size(4), source.choose.integer(2, 9)
    return Call({"logits": source.normal(B, T, V), "targets": source.targets(V, (B, T))})


def complex_step(source: Source) -> Mapping[str, Call]:
    """A call in which one target does not count."""
    targets = source.rng.integers(0, 11, (2, 5))
    targets[1, 3] = IGNORE_INDEX
    return {"": Call({"logits": source.normal(2, 5, 11), "targets": targets})}


SPECIAL = {
    "all targets ignored": Call(
        {"logits": np.arange(12.0).reshape(2, 2, 3), "targets": np.full((2, 2), IGNORE_INDEX)},
    ),
    "all targets of one sequence ignored": Call(
        {"logits": np.arange(12.0).reshape(2, 2, 3), "targets": np.array([[IGNORE_INDEX, IGNORE_INDEX], [2, 0]])},
    ),
}

BUGS = (
    Bug(
        "targets_in_another_order",
        "logits and targets are flattened along different axes",
        "no public report known",
        "loss",
        ("forward", "gradients"),
        (Change("objectives.next_token:forward", "targets.reshape(-1)", "targets.T.reshape(-1)"),),
    ),
)

RECORD = Record(next_token, draw, SPECIAL, complex_step, BUGS)
