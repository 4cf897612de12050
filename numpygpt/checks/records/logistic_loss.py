"""`logistic_loss`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.ops import logistic_loss


def draw(source: Source) -> Call:
    """Draw scores of any shape, with labels that are true or false, or anything between."""
    shape = source.rows()
    labels = source.rng.random(shape)
    return Call({"x": source.normal(*shape), "labels": labels > 0.5 if source.yes() else labels})


def complex_step(source: Source) -> Mapping[str, Call]:
    """Labels between 0 and 1."""
    return {"": Call({"x": source.normal(3, 5), "labels": source.rng.random((3, 5))})}


SPECIAL = {
    "scores of 1000": Call({"x": np.array([1e3, -1e3, 1e3, -1e3]), "labels": np.array([0.0, 0.0, 1.0, 1.0])}),
    "infinite scores that are right": Call({"x": np.array([-np.inf, np.inf]), "labels": np.array([0.0, 1.0])}),
    "scores that are right by far": Call({"x": np.array([-30.0, 30.0]), "labels": np.array([0.0, 1.0])}),
    "a tie": Call({"x": np.zeros(2), "labels": np.array([0.0, 1.0])}),
}

BUGS = (
    Bug(
        "logistic_loss_of_the_logarithm",
        "the probability is computed before its logarithm is taken, which is log(0) for a large score",
        "no public report known",
        "none",
        ("operations_at_extremes", "objectives"),
        (
            Change(
                "ops.logistic_loss:forward",
                "np.log1p(np.exp(-size)) + c * np.where(c == 0, 0, x)",
                "-t * np.log(1 / (1 + np.exp(-x))) - (1 - t) * np.log(1 / (1 + np.exp(x)))",
            ),
        ),
    ),
    Bug(
        "logistic_loss_gradient_cancels",
        "the slope of a score that is right by far is what is left of 1 - 1",
        "no public report known",
        "none",
        ("operations_at_extremes", "objectives"),
        (Change("ops.logistic_loss:backward", "((1 - t) * yes - t * no)", "(yes - t)"),),
    ),
    Bug(
        "logistic_loss_of_infinite_scores_is_nan",
        "an infinite score is multiplied by 0",
        "OpenRLHF#1335",
        "none",
        ("operations_at_extremes", "objectives"),
        (Change("ops.logistic_loss:forward", "c * np.where(c == 0, 0, x)", "c * x"),),
    ),
    Bug(
        "logistic_loss_gradient_without_label",
        "the gradient is that of the label 1",
        "no public report known",
        "operations.logistic_loss.d_x",
        ("operations", "operations_complex_step"),
        (Change("ops.logistic_loss:backward", "((1 - t) * yes - t * no)", "-no"),),
    ),
)

RECORD = Record(logistic_loss, draw, SPECIAL, complex_step, BUGS)
