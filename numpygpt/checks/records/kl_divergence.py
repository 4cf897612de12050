"""`kl_divergence`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import kl_divergence


def draw(source: Source) -> Call:
    """Draw two arrays of logits of any shape."""
    shape = *source.rows(), source.choose.integer(2, 9)
    return Call({"first": source.normal(*shape), "second": source.normal(*shape)})


def complex_step(source: Source) -> Mapping[str, Call]:
    """A plain call."""
    return {"": Call({"first": source.normal(2, 5, 11), "second": source.normal(2, 5, 11)})}


SPECIAL = {
    "both distributions are the same": Call(
        {"first": np.array([[1.0, 2.0, 0.5]]), "second": np.array([[4.0, 5.0, 3.5]])}
    ),
    "tokens that the first excludes, and both": Call(
        {
            "first": np.array([[1.0, -np.inf, 0.0], [0.0, -np.inf, 1.0]]),
            "second": np.array([[0.5, 2.0, 0.0], [1.0, -np.inf, 0.0]]),
        }
    ),
    "a token that has next to no probability, and that the second excludes": Call(
        {"first": np.array([[0.0, -1000.0, 0.5]]), "second": np.array([[1.0, -np.inf, 0.0]])}
    ),
    "logits of 1e5": Call({"first": np.array([[1e5, 0.0, -1e5]]), "second": np.array([[1e5, 99_999.0, -1e5]])}),
}

BUGS = (
    Bug(
        "kl_of_excluded_tokens_is_nan",
        "the term of a token that both exclude is 0 times infinity",
        "OpenRLHF#1335",
        "none",
        ("operations_at_extremes", "objectives"),
        (
            Change("ops.kl_divergence:_difference", "np.where(excluded, 0, log_p)", "log_p"),
            Change("ops.kl_divergence:_difference", "np.where(excluded, 0, log_q)", "log_q"),
        ),
    ),
    Bug(
        "kl_gradient_without_its_mean",
        "the gradient of the first logits leaves out that p is normalized",
        "no public report known",
        "operations.kl_divergence.d_first",
        ("operations", "operations_complex_step"),
        (Change("ops.kl_divergence:backward", "(_difference(p, log_p, log_q) - y)", "_difference(p, log_p, log_q)"),),
    ),
    Bug(
        "kl_in_the_other_direction",
        "the terms are weighted by the second distribution",
        "no public report known",
        "operations.kl_divergence.output",
        ("operations", "operations_complex_step"),
        (Change("ops.kl_divergence:forward", "p * _difference", "np.exp(log_q) * _difference"),),
    ),
)

RECORD = Record(kl_divergence, draw, SPECIAL, complex_step, BUGS)
