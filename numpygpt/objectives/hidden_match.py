"""A student's last hidden state comes near a teacher's: the mean squared distance at the positions that count.

    student, teacher   (B, T, D)   hidden states of one size
    weights            (B, T)      of the positions, constants; 0 leaves one out
    e                  (B, T, D)   their difference
    loss               ()          the weighted mean over positions of the mean over features

Forward (Jiao et al. 2020, arXiv:1909.10351, equation 8; Sanh et al. 2019, arXiv:1910.01108, take the cosine instead, in
the section "Knowledge distillation"):

    (1)  e = student - teacher                    0 at the positions that do not count
    (2)  y = mean over features of e²
    (3)  loss = weighted_mean(y)

Derivation:

    dy = 2 mean(e * de) = 2 sum(e * de) / D
    d_student = 2 e d_y / D
    d_teacher = -d_student

Saved: e, and what weighted_mean saves.
Trap: a sum over features for the mean: the weight of this loss beside another then grows with the model's width.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.ops import weighted_mean
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    e: Inexact[Array, "B T D"]
    weighted_mean: weighted_mean.Saved


def forward(
    student: Inexact[Array, "B T D"],
    teacher: Array,
    weights: Array,
    *,
    over: str = "tokens",
    normalizer: float | None = None,
) -> tuple[Any, Saved]:
    """The loss, a NumPy scalar of the states' dtype. `over` and `normalizer` are `weighted_mean`'s.

    Raises InputError for a teacher whose states have another size.
    """
    if student.shape != teacher.shape:
        raise InputError(
            f"the student's hidden states are {student.shape} and the teacher's {teacher.shape}; expected the same"
        )
    counts = np.asarray(weights)[..., np.newaxis] != 0
    e = np.where(counts, student, 0) - np.where(counts, teacher, 0)  # (1)
    y = (e * e).mean(axis=-1)  # (2)
    loss, saved = weighted_mean.forward(y, weights, over=over, normalizer=normalizer)  # (3)
    return loss, Saved(e, saved)


class Gradients(NamedTuple):
    student: Inexact[Array, "B T D"]
    teacher: Inexact[Array, "B T D"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    d_y = weighted_mean.backward(d_loss, saved.weighted_mean).x[..., np.newaxis]  # undoes (3)
    d_student = 2 * saved.e * d_y / saved.e.shape[-1]  # undoes (2) and (1)
    return Gradients(d_student, -d_student)
