"""`distillation`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source
from numpygpt.objectives import distillation


def draw(source: Source) -> Call:
    """Draw logits of both, at any temperature, in either direction."""
    B, T, V = source.size(3), source.size(4), source.choose.integer(2, 9)
    arguments = {
        "student": source.normal(B, T, V),
        "teacher": source.normal(B, T, V),
        "weights": source.weights((B, T)),
    }
    options = {
        "temperature": source.choose.one_of([1.0, 0.5, 3.0]),
        "direction": source.choose.one_of(distillation.DIRECTIONS),
    }
    return Call(arguments, options | source.mean())


def complex_step(source: Source) -> Mapping[str, Call]:
    """Both directions, at a temperature, with a position that does not count."""
    weights = source.rng.random((2, 3)) + 0.1
    weights[0, 1] = 0
    arguments = {"student": source.normal(2, 3, 5), "teacher": source.normal(2, 3, 5), "weights": weights}
    return {way: Call(arguments, {"direction": way, "temperature": 2.5}) for way in distillation.DIRECTIONS}


_LOGITS = {
    "student": np.array([[[1.0, 2.0, 0.0], [0.5, 0.0, 1.0]]]),
    "teacher": np.array([[[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]]]),
}

SPECIAL = {
    "no position counts": Call({**_LOGITS, "weights": np.zeros((1, 2))}),
    "one position": Call({**_LOGITS, "weights": np.array([[True, False]])}, {"temperature": 2.0}),
    "tokens that the teacher excludes": Call(
        {**_LOGITS, "teacher": np.array([[[0.0, -np.inf, 1.0], [3.0, 0.0, -np.inf]]]), "weights": np.ones((1, 2))}
    ),
    "a position that does not count is infinitely far": Call(
        {**_LOGITS, "teacher": np.array([[[0.0, 1.0, 1.0], [3.0, 0.0, -np.inf]]]), "weights": np.array([[1.0, 0.0]])},
        {"direction": "reverse"},
    ),
    "logits of 1e5": Call(
        {
            "student": np.array([[[1e5, 0.0, -1e5]]]),
            "teacher": np.array([[[1e5, 99_999.0, -1e5]]]),
            "weights": np.ones((1, 1)),
        }
    ),
}

BUGS = (
    Bug(
        "distillation_without_its_square",
        "the loss lacks the square of the temperature",
        "no public report known",
        "operations.distillation.output",
        ("operations", "operations_complex_step", "objectives"),
        (Change("objectives.distillation:forward", "mean.dtype.type(temperature**2) * mean", "mean"),),
    ),
    Bug(
        "distillation_student_without_temperature",
        "the temperature is that of the teacher only",
        "no public report known",
        "operations.distillation.output",
        ("operations", "operations_complex_step", "objectives"),
        (Change("objectives.distillation:forward", "student[counts] / temperature", "student[counts]"),),
    ),
    Bug(
        "distillation_gradients_exchanged",
        "the reverse direction gives the student the teacher's gradient",
        "no public report known",
        "operations.distillation.d_student",
        ("operations", "operations_complex_step"),
        (
            Change(
                "objectives.distillation:backward",
                'gradients if saved.direction == "forward" else gradients[::-1]',
                "gradients",
            ),
        ),
    ),
    Bug(
        "distillation_in_the_other_direction",
        "forward and reverse are exchanged, as the order of kl_div's arguments makes one think",
        "no public report known",
        "operations.distillation.output",
        ("operations", "objectives"),
        (
            Change(
                "objectives.distillation:forward",
                'pair if direction == "forward" else pair[::-1]',
                'pair if direction == "reverse" else pair[::-1]',
            ),
            Change(
                "objectives.distillation:backward",
                'gradients if saved.direction == "forward" else gradients[::-1]',
                'gradients if saved.direction == "reverse" else gradients[::-1]',
            ),
        ),
    ),
)

RECORD = Record(distillation, draw, SPECIAL, complex_step, BUGS)
