"""`dpo`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.objectives import dpo

NAMES = ("chosen", "rejected", "reference_chosen", "reference_rejected")


def draw(source: Source) -> Call:
    """Draw pairs, with a reference or without, in either form, with lengths or without."""
    N = source.size(6)
    arguments = {name: source.normal(N) for name in NAMES[: source.choose.one_of([4, 2])]}
    options = {"beta": source.choose.one_of([0.1, 0.5]), "form": source.choose.one_of(dpo.FORMS)}
    if options["form"] == "sigmoid":
        options["label_smoothing"] = source.choose.one_of([0.0, 0.2])
    if source.yes():
        options |= {f"{which}_lengths": source.rng.integers(1, 9, N) for which in NAMES[:2]}
    return Call(arguments, options | ({"normalizer": 7.5} if source.yes() else {}))


def complex_step(source: Source) -> Mapping[str, Call]:
    """Each form."""
    arguments = {name: source.normal(5) for name in NAMES}
    lengths = {f"{which}_lengths": source.rng.integers(1, 9, 5) for which in NAMES[:2]}
    return {
        "smoothed": Call(arguments, {"beta": 0.5, "label_smoothing": 0.2}),
        "ipo": Call(arguments, {"beta": 0.5, "form": "ipo", **lengths}),
        "without a reference": Call({name: arguments[name] for name in NAMES[:2]}, {"beta": 0.5}),
    }


def _pairs(*numbers: float) -> dict[str, np.ndarray]:
    """One pair."""
    return {name: np.array([number]) for name, number in zip(NAMES, numbers, strict=True)}


SPECIAL = {
    "a tie, as at the beginning": Call(_pairs(-3.0, -4.0, -3.0, -4.0)),
    "answers of 1e4 nats": Call(_pairs(-1e4, -10.0, -10.0, -1e4), {"beta": 1.0}),
}

BUGS = (
    Bug(
        "dpo_reference_of_the_other_answer",
        "the reference's log-probabilities of the two answers are exchanged",
        "no public report known",
        "operations.dpo.output",
        ("operations", "objectives", "objectives_of_trl"),
        (
            Change(
                "objectives.dpo:forward",
                "chosen - reference_chosen, rejected - reference_rejected",
                "chosen - reference_rejected, rejected - reference_chosen",
            ),
        ),
    ),
    Bug(
        "dpo_without_beta_in_its_gradient",
        "the gradient lacks the factor beta",
        "no public report known",
        "operations.dpo.d_chosen",
        ("operations", "operations_complex_step"),
        (
            Change(
                "objectives.dpo:backward",
                "saved.beta * logistic_loss.backward(d_losses",
                "logistic_loss.backward(d_losses",
            ),
        ),
    ),
    Bug(
        "dpo_smoothing_of_the_wrong_answer",
        "the share that may be the wrong way round is given to the pairs that are right",
        "no public report known",
        "operations.dpo.output",
        ("operations", "objectives", "objectives_of_trl"),
        (
            Change(
                "objectives.dpo:forward",
                "np.full(margins.shape, 1 - label_smoothing)",
                "np.full(margins.shape, label_smoothing)",
            ),
        ),
    ),
    Bug(
        "ipo_goal_of_one_over_beta",
        "the goal of IPO's margin is 1 / beta",
        "no public report known",
        "operations.dpo.output",
        ("operations", "operations_complex_step", "objectives_of_trl"),
        (Change("objectives.dpo:forward", "(margins - 1 / (2 * beta)) ** 2", "(margins - 1 / beta) ** 2"),),
    ),
    Bug(
        "dpo_mean_over_tokens",
        "the gradient is that of the sum over an answer's tokens, where the loss takes their mean",
        "no public report known",
        "operations.dpo.d_chosen",
        ("operations", "operations_complex_step"),
        (
            Change(
                "objectives.dpo:backward",
                "d_margins * saved.shares[0], -d_margins * saved.shares[1]",
                "d_margins, -d_margins",
            ),
        ),
    ),
)

RECORD = Record(dpo, draw, SPECIAL, complex_step, BUGS)
