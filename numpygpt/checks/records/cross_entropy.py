"""`cross_entropy`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import cross_entropy
from numpygpt.ops.cross_entropy import IGNORE_INDEX


def draw(source: Source) -> Call:
    """Draw targets some of which do not count; the id that marks them may also be an id of the vocabulary."""
    rows, vocab_size = source.size(6), source.choose.integer(2, 9)
    ignore_index = source.choose.one_of([IGNORE_INDEX, 1])
    arguments = {"logits": source.normal(rows, vocab_size)}
    arguments["targets"] = source.targets(vocab_size, rows, ignore_index)
    return Call(arguments, {"ignore_index": ignore_index})


def complex_step(source: Source) -> Mapping[str, Call]:
    """A call in which one target does not count."""
    targets = source.rng.integers(0, 11, 10)
    targets[3] = IGNORE_INDEX
    return {"": Call({"logits": source.normal(10, 11), "targets": targets})}


SPECIAL = {
    "logits of 1e5": Call(
        {
            "logits": np.array([[1e5, -1e5, 0.0, 99_999.0], [-1e5, -1e5, -1e5, -1e5], [1e5, 1e5, -1e5, 1e5]]),
            "targets": np.array([0, 2, 1]),
        }
    ),
    "all targets ignored": Call({"logits": np.arange(12.0).reshape(4, 3), "targets": np.full(4, IGNORE_INDEX)}),
}

BUGS = (
    Bug(
        "all_ignored_is_nan",
        "a batch without targets divides by zero",
        "pytorch#70348",
        "none",
        ("extremes", "micro_batches"),
        (Change("ops.cross_entropy:forward", "max(1, len(counted))", "len(counted)"),),
    ),
)

RECORD = Record(cross_entropy, draw, SPECIAL, complex_step, BUGS)
