"""`token_log_probs`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import token_log_probs
from numpygpt.ops.cross_entropy import IGNORE_INDEX


def draw(source: Source) -> Call:
    """Draw logits of any shape, with tokens that do not count, and with smoothed labels or without."""
    rows, vocab_size = source.rows(), source.choose.integer(2, 9)
    arguments = {"logits": source.normal(*rows, vocab_size), "ids": source.targets(vocab_size, rows)}
    return Call(arguments, {"smoothing": source.choose.one_of([0.0, 0.1, 0.5])})


def complex_step(source: Source) -> Mapping[str, Call]:
    """A call in which one token does not count, with and without smoothing."""
    ids = source.rng.integers(0, 11, (2, 5))
    ids[1, 3] = IGNORE_INDEX
    call = Call({"logits": source.normal(2, 5, 11), "ids": ids})
    return {"": call, "smoothed": call._replace(options={"smoothing": 0.2})}


SPECIAL = {
    "logits of 1e5": Call({"logits": np.array([[1e5, -1e5, 0.0], [-1e5, -1e5, -1e5]]), "ids": np.array([1, 2])}),
    "other tokens are excluded": Call(
        {"logits": np.array([[1.0, -np.inf, 0.0], [-np.inf, 2.0, -np.inf]]), "ids": np.array([2, 1])}
    ),
    "no token counts": Call({"logits": np.arange(6.0).reshape(2, 3), "ids": np.full(2, IGNORE_INDEX)}),
}

BUGS = (
    Bug(
        "smoothing_shared_by_the_others",
        "the smoothed share goes to the other tokens only, as V - 1 of them",
        "no public report known",
        "operations.token_log_probs.d_logits",
        ("operations", "operations_complex_step"),
        (Change("ops.token_log_probs:backward", "saved.smoothing / V", "saved.smoothing / (V - 1)"),),
    ),
    Bug(
        "log_probs_of_ignored_tokens",
        "the gradient of a token that does not count goes through",
        "trl#3728",
        "operations.token_log_probs.d_logits",
        ("operations", "operations_complex_step"),
        (
            Change(
                "ops.token_log_probs:backward",
                "weight[counted, 0] = d_y.reshape(-1)[counted]",
                "weight[:, 0] = d_y.reshape(-1)",
            ),
        ),
    ),
)

RECORD = Record(token_log_probs, draw, SPECIAL, complex_step, BUGS)
