"""The objective of a class: the mean cross-entropy of the logits at the last real token of each text with its label.

    logits    (B, T, C)   scores of the C classes at each position, by a head of C rows
    lengths   (B)         real tokens of each text, at least 1; padding follows them
    labels    (B)         the class of each text, in [0, C); IGNORE_INDEX if the text does not count
    loss      ()          the mean over the texts that count, in nats

Forward (Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", equations 3 and 4):

    (1)  scores = logits at position length - 1             (B, C)
    (2)  log_probs = token_log_probs(scores, labels)        of the classes, as elsewhere of tokens
    (3)  loss = -sum(log_probs) / N                         N texts count

Why (1): under a causal mask a position has read what stands before it, so the last real one alone has read all.

Derivation. d_log_probs = -d_loss / N, and (2) has its own backward. The choice in (1) is a lookup: its gradient goes to
the positions that were chosen, and the others get 0.

Saved: what (2) saves, the shape of the logits, and the lengths.
Traps: position T - 1 for a text that is shorter: the scores of padding; the scores of the first position, as a model
reads them that sees in both directions; a mean over texts that do not count, too.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.ops import token_log_probs
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.shapes import Array, Inexact, Integer


class Saved(NamedTuple):
    token_log_probs: token_log_probs.Saved
    shape: tuple[int, ...]
    lengths: Integer[Array, "B"]
    divisor: float


def forward(
    logits: Inexact[Array, "B T C"],
    lengths: Integer[Array, "B"],
    labels: Integer[Array, "B"],
    *,
    smoothing: float = 0.0,
    normalizer: float | None = None,
) -> tuple[Any, Saved]:
    """The loss, a NumPy scalar of the logits' dtype.

    smoothing    the share of a label that goes to all classes alike, as in `token_log_probs`
    normalizer   what the sum is divided by; None: the texts that count. A part of a batch has that of the whole

    Raises InputError for a length outside 1 to T, and for a label outside the classes.
    """
    _refuse_lengths(lengths, logits.shape[1])
    _refuse_labels(labels, logits.shape[2])
    scores = logits[np.arange(len(logits)), lengths - 1]  # (1)
    log_probs, saved = token_log_probs.forward(scores, labels, smoothing=smoothing)  # (2)
    counted = np.count_nonzero(labels != IGNORE_INDEX)
    divisor = float((counted if normalizer is None else normalizer) or 1)
    loss = -log_probs.sum() / logits.dtype.type(divisor)  # (3)
    return loss, Saved(saved, logits.shape, lengths, divisor)


class Gradients(NamedTuple):
    logits: Inexact[Array, "B T C"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    B = saved.shape[0]
    d_log_probs = np.full(B, -d_loss / saved.divisor)  # undoes (3)
    d_scores = token_log_probs.backward(d_log_probs, saved.token_log_probs).logits  # undoes (2)
    d_logits = np.zeros(saved.shape, d_scores.dtype)
    d_logits[np.arange(B), saved.lengths - 1] = d_scores  # undoes (1)
    return Gradients(d_logits)


def _refuse_lengths(lengths: Array, T: int) -> None:
    outside = np.flatnonzero((lengths < 1) | (lengths > T))
    if outside.size:
        raise InputError(f"text {outside[0]} has {lengths[outside[0]]} tokens; expected from 1 to {T}")


def _refuse_labels(labels: Array, classes: int) -> None:
    outside = np.flatnonzero(((labels < 0) | (labels >= classes)) & (labels != IGNORE_INDEX))
    if outside.size:
        raise InputError(
            f"the label of text {outside[0]} is {labels[outside[0]]}; expected one of {classes} classes, "
            f"from 0 to {classes - 1}"
        )
