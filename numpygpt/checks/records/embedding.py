"""`embedding`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import embedding


def draw(source: Source) -> Call:
    """Draw ids of any shape, some of which come more than once."""
    vocab_size = source.choose.integer(2, 9)
    return Call({"ids": source.ids(vocab_size, source.rows()), "weight": source.normal(vocab_size, source.size(5))})


def complex_step(source: Source) -> Mapping[str, Call]:
    """A call with more ids than the table has rows."""
    return {"": Call({"ids": source.rng.integers(0, 11, (3, 5)), "weight": source.normal(11, 12)})}


SPECIAL = {"one id only": Call({"ids": np.zeros((3, 5), int), "weight": np.array([[1.0, -2.0, 0.5], [3.0, 0.0, 4.0]])})}

_SUM = "d_weight[present] = np.add.reduceat(d_rows[order], first, axis=0)"

BUGS = (
    Bug(
        "embedding_loses_repeats",
        "dW[ids] += dy adds the gradient of only one of several equal ids",
        "no public report known",
        "d_tok_emb.weight",
        ("gradients", "complex_step"),
        (Change("ops.embedding:backward", _SUM, "d_weight[saved.ids.reshape(-1)] += d_rows"),),
    ),
)

CONTROLS = (
    Bug(
        "embedding_by_add_at",
        "np.add.at computes the sum over equal ids",
        "control",
        "none",
        (),
        (Change("ops.embedding:backward", _SUM, "np.add.at(d_weight, saved.ids.reshape(-1), d_rows)"),),
    ),
)

RECORD = Record(embedding, draw, SPECIAL, complex_step, BUGS, CONTROLS)
