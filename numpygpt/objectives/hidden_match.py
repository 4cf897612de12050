"""A student's last hidden state comes near a teacher's: the mean squared distance at the positions that count.

    student, teacher   (B, T, D)   hidden states of one size
    weights            (B, T)      of the positions, constants; 0 leaves one out
    loss               ()          the weighted mean over positions of the mean over features

Forward (Sanh et al. 2019, arXiv:1910.01108, section 3, has the cosine; Jiao et al. 2020, arXiv:1909.10351, equation 8,
this distance):

    (1)  y = mean over features of (student - teacher)²
    (2)  loss = weighted_mean(y)

Derivation: d_student = 2 (student - teacher) d_y / D, and the teacher's gradient is the opposite.
"""

from typing import Any, NamedTuple

from numpygpt.ops import weighted_mean
from numpygpt.shapes import Array, Inexact


class Saved(NamedTuple):
    difference: Inexact[Array, "B T D"]
    weighted_mean: weighted_mean.Saved


def forward(
    student: Inexact[Array, "B T D"],
    teacher: Inexact[Array, "B T D"],
    weights: Array,
    *,
    over: str = "tokens",
    normalizer: float | None = None,
) -> tuple[Any, Saved]:
    """The loss, a NumPy scalar. `over` and `normalizer` are `weighted_mean`'s."""
    difference = student - teacher
    y = (difference * difference).mean(axis=-1)  # (1)
    loss, saved = weighted_mean.forward(y, weights, over=over, normalizer=normalizer)  # (2)
    return loss, Saved(difference, saved)


class Gradients(NamedTuple):
    student: Inexact[Array, "B T D"]
    teacher: Inexact[Array, "B T D"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    d_y = weighted_mean.backward(d_loss, saved.weighted_mean).x[..., None]  # undoes (2)
    d_student = 2 * saved.difference * d_y / saved.difference.shape[-1]  # undoes (1)
    return Gradients(d_student, -d_student)
