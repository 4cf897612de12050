"""Distillation: a student learns a teacher's distribution at each position.

    student, teacher   (B, T, V)   their logits
    weights            (B, T)      of the positions, constants; 0 leaves one out
    temperature        τ           above 1 shows more of what the teacher holds for less likely
    N                              the positions whose weight is not 0
    loss               ()          the weighted mean of the divergences, times τ²

Forward (Hinton et al. 2015, arXiv:1503.02531, section 2; the reverse direction, Gu et al. 2024, arXiv:2306.08543):

    (1)  a = teacher / τ, b = student / τ                  (N, V), at the positions that count
    (2)  "forward":  y = KL(softmax(a) || softmax(b))      the student covers all that the teacher may say
         "reverse":  y = KL(softmax(b) || softmax(a))      it says nothing that the teacher would not
    (3)  loss = τ² weighted_mean(y)

Derivation. With q = softmax(b) and p = softmax(a), "forward" has

    d_b = d_y (q - p)            from `kl_divergence`
    d_student = d_b / τ          from (1)

For a large τ, q - p is about (b - a) / V less its mean, and so shrinks as 1/τ. The gradient shrinks as 1/τ² in all; τ²
takes that back (sections 2 and 2.1), so the weight of this loss beside another need not change with τ.

The teacher is a constant of training, and its gradient is computed nevertheless, because the operation has it.

Saved: what the divergence and the mean save, the positions that count, τ and the direction.
Traps: τ² left out; a softmax of only one of the two at τ; padding counted, where both say nothing that matters; the
arguments of PyTorch's kl_div, which takes the second distribution first, and as logarithms.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.ops import kl_divergence, weighted_mean
from numpygpt.shapes import Array, Bool, Inexact

DIRECTIONS = ("forward", "reverse")


class Saved(NamedTuple):
    kl_divergence: kl_divergence.Saved
    weighted_mean: weighted_mean.Saved
    counts: Bool[Array, "B T"]
    temperature: float
    direction: str


def forward(
    student: Inexact[Array, "B T V"],
    teacher: Array,
    weights: Array,
    *,
    temperature: float = 1.0,
    direction: str = "forward",
    over: str = "tokens",
    normalizer: float | None = None,
) -> tuple[Any, Saved]:
    """The loss, a NumPy scalar of the logits' dtype. `over` and `normalizer` are `weighted_mean`'s.

    Raises InputError for another direction, a temperature that is not positive, and two vocabularies.
    """
    _refuse(student, teacher, temperature, direction)
    counts = np.asarray(weights) != 0
    pair = teacher[counts] / temperature, student[counts] / temperature  # (1)
    divergences, saved = kl_divergence.forward(*(pair if direction == "forward" else pair[::-1]))  # (2)
    y = np.zeros(counts.shape, divergences.dtype)
    y[counts] = divergences
    mean, weighted = weighted_mean.forward(y, weights, over=over, normalizer=normalizer)
    loss = mean.dtype.type(temperature**2) * mean  # (3)
    return loss, Saved(saved, weighted, counts, temperature, direction)


class Gradients(NamedTuple):
    student: Inexact[Array, "B T V"]
    teacher: Inexact[Array, "B T V"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    d_y = weighted_mean.backward(d_loss * saved.temperature**2, saved.weighted_mean).x[saved.counts]  # undoes (3)
    gradients = kl_divergence.backward(d_y, saved.kl_divergence)  # undoes (2)
    d_teacher, d_student = gradients if saved.direction == "forward" else gradients[::-1]
    return Gradients(*(_placed(gradient / saved.temperature, saved.counts) for gradient in (d_student, d_teacher)))


def _placed(rows: Inexact[Array, "N V"], counts: Bool[Array, "B T"]) -> Inexact[Array, "B T V"]:
    """The rows at the positions that count, and 0 elsewhere: undoes (1)."""
    placed = np.zeros((*counts.shape, rows.shape[1]), rows.dtype)
    placed[counts] = rows
    return placed


def _refuse(student: Array, teacher: Array, temperature: float, direction: str) -> None:
    if direction not in DIRECTIONS:
        raise InputError(f"the direction is {direction!r}; expected {' or '.join(map(repr, DIRECTIONS))}")
    if not 0 < temperature < np.inf:
        raise InputError(f"temperature is {temperature!r}; expected a positive number")
    if student.shape[-1] != teacher.shape[-1]:
        raise InputError(
            f"the student has a vocabulary of {student.shape[-1]} and the teacher one of {teacher.shape[-1]}; "
            "expected the same"
        )
