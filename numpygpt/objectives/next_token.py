"""The objective of the next token: the mean cross-entropy of the logits at each position with the token that follows.

    logits    (B, T, V)   scores of each next token
    targets   (B, T)      the ids of the tokens that follow; IGNORE_INDEX if the position does not count
    loss      ()          the mean over the positions that count, in nats

It is `cross_entropy` with all B T positions taken as rows.
"""

from typing import Any, NamedTuple

from numpygpt.ops import cross_entropy
from numpygpt.shapes import Array, Inexact, Integer


class Saved(NamedTuple):
    cross_entropy: cross_entropy.Saved
    shape: tuple[int, ...]


def forward(logits: Inexact[Array, "B T V"], targets: Integer[Array, "B T"]) -> tuple[Any, Saved]:
    """The loss, a NumPy scalar of the logits' dtype, and what the backward needs.

    Raises InputError for a target outside the vocabulary.
    """
    loss, saved = cross_entropy.forward(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
    return loss, Saved(saved, logits.shape)


class Gradients(NamedTuple):
    logits: Inexact[Array, "B T V"]


def backward(d_loss: Any, saved: Saved, *, in_place: bool = False) -> Gradients:
    """The gradient of the logits (B, T, V) for the gradient of the loss.

    in_place   write the gradient over the logits, which are the largest activation; they are lost
    """
    out = saved.cross_entropy.logits if in_place else None
    return Gradients(cross_entropy.backward(d_loss, saved.cross_entropy, out=out).logits.reshape(saved.shape))
