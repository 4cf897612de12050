"""Distillation: a student learns a teacher's distribution at each position (Hinton et al. 2015, arXiv:1503.02531).

    student, teacher   (B, T, V)   their logits
    weights            (B, T)      of the positions, constants; 0 leaves one out
    temperature        τ           above 1 shows more of what the teacher holds for less likely
    loss               ()          the weighted mean of the divergences, times τ²

Forward:

    (1)  a = teacher / τ, b = student / τ
    (2)  "forward":  y = KL(softmax(a) || softmax(b))      the student covers all that the teacher may say
         "reverse":  y = KL(softmax(b) || softmax(a))      it says nothing that the teacher would not
    (3)  loss = τ² weighted_mean(y)

The gradient of y for the student's logits has the factor 1/τ from (1) and shrinks as 1/τ² in all; τ² takes that back
(section 2.1), so the weight of this loss beside another need not change with τ.

The teacher is a constant of training, and its gradient is computed nevertheless, because the operation has it.
"""

from typing import Any, NamedTuple

from numpygpt.errors import InputError
from numpygpt.ops import kl_divergence, weighted_mean
from numpygpt.shapes import Array, Inexact

DIRECTIONS = ("forward", "reverse")


class Saved(NamedTuple):
    kl_divergence: kl_divergence.Saved
    weighted_mean: weighted_mean.Saved
    temperature: float
    direction: str


def forward(
    student: Inexact[Array, "B T V"],
    teacher: Inexact[Array, "B T V"],
    weights: Array,
    *,
    temperature: float = 1.0,
    direction: str = "forward",
    over: str = "tokens",
    normalizer: float | None = None,
) -> tuple[Any, Saved]:
    """The loss, a NumPy scalar. `over` and `normalizer` are `weighted_mean`'s.

    Raises InputError for another direction, a temperature that is not positive, and two vocabularies.
    """
    if direction not in DIRECTIONS:
        raise InputError(f"the direction is {direction!r}; expected {' or '.join(map(repr, DIRECTIONS))}")
    if not temperature > 0:
        raise InputError(f"temperature is {temperature!r}; expected a positive number")
    pair = (teacher / temperature, student / temperature)  # (1)
    y, divergence = kl_divergence.forward(*(pair if direction == "forward" else pair[::-1]))  # (2)
    mean, weighted = weighted_mean.forward(y, weights, over=over, normalizer=normalizer)
    loss = mean.dtype.type(temperature**2) * mean  # (3)
    return loss, Saved(divergence, weighted, temperature, direction)


class Gradients(NamedTuple):
    student: Inexact[Array, "B T V"]
    teacher: Inexact[Array, "B T V"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    d_y = weighted_mean.backward(d_loss * saved.temperature**2, saved.weighted_mean).x  # undoes (3)
    gradients = kl_divergence.backward(d_y, saved.kl_divergence)  # undoes (2)
    d_teacher, d_student = gradients if saved.direction == "forward" else gradients[::-1]
    return Gradients(d_student / saved.temperature, d_teacher / saved.temperature)  # undoes (1)
