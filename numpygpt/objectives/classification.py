"""The objective of a class: the mean cross-entropy of the logits at the last real token of each text with its label.

    logits    (B, T, C)   scores of the C classes at each position, by a head of C rows
    lengths   (B)         real tokens of each text, at least 1; padding follows them
    labels    (B)         the class of each text, in [0, C); IGNORE_INDEX if the text does not count
    loss      ()          the mean over the texts that count, in nats

Forward:

    (1)  scores = logits at position length - 1    under a causal mask, that position alone has read the whole text
    (2)  loss = cross_entropy(scores, labels)

The choice in (1) is a lookup: its gradient goes to the positions that were chosen, and the others get 0.
Trap: position T - 1 for a text that is shorter: the scores of padding.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.ops import cross_entropy
from numpygpt.shapes import Array, Inexact, Integer


class Saved(NamedTuple):
    cross_entropy: cross_entropy.Saved
    shape: tuple[int, ...]
    lengths: Integer[Array, "B"]


def forward(
    logits: Inexact[Array, "B T C"], lengths: Integer[Array, "B"], labels: Integer[Array, "B"]
) -> tuple[Any, Saved]:
    """The loss, a NumPy scalar of the logits' dtype.

    Raises InputError for a length outside 1 to T, and for a label outside the classes.
    """
    _refuse_lengths(lengths, logits.shape[1])
    _refuse_labels(labels, logits.shape[2])
    scores = logits[np.arange(len(logits)), lengths - 1]  # (1)
    loss, saved = cross_entropy.forward(scores, labels)  # (2)
    return loss, Saved(saved, logits.shape, lengths)


class Gradients(NamedTuple):
    logits: Inexact[Array, "B T C"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    d_scores = cross_entropy.backward(d_loss, saved.cross_entropy).logits  # undoes (2)
    d_logits = np.zeros(saved.shape, d_scores.dtype)
    d_logits[np.arange(len(d_logits)), saved.lengths - 1] = d_scores  # undoes (1)
    return Gradients(d_logits)


def _refuse_lengths(lengths: Array, T: int) -> None:
    outside = np.flatnonzero((lengths < 1) | (lengths > T))
    if outside.size:
        raise InputError(f"text {outside[0]} has {lengths[outside[0]]} tokens; expected from 1 to {T}")


def _refuse_labels(labels: Array, classes: int) -> None:
    outside = np.flatnonzero(((labels < 0) | (labels >= classes)) & (labels != cross_entropy.IGNORE_INDEX))
    if outside.size:
        raise InputError(
            f"the label of text {outside[0]} is {labels[outside[0]]}; expected one of {classes} classes, "
            f"from 0 to {classes - 1}"
        )
