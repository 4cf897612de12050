"""The next token: the mean cross-entropy of each position's logits with the token that follows.

    logits    (B, T, V)   scores of each next token
    targets   (B, T)      the ids of the tokens that follow; IGNORE_INDEX where none counts
    loss      ()          nats a counted token

It is `cross_entropy` over all B T positions taken as rows.
"""

from typing import Any, NamedTuple

from numpygpt.ops import cross_entropy
from numpygpt.shapes import Array, Inexact, Integer


class Saved(NamedTuple):
    cross_entropy: cross_entropy.Saved
    shape: tuple[int, ...]


def forward(logits: Inexact[Array, "B T V"], targets: Integer[Array, "B T"]) -> tuple[Any, Saved]:
    """The loss is a NumPy scalar of the logits' dtype. InputError for a target outside the vocabulary."""
    loss, saved = cross_entropy.forward(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
    return loss, Saved(saved, logits.shape)


class Gradients(NamedTuple):
    logits: Inexact[Array, "B T V"]


def backward(d_loss: Any, saved: Saved, *, in_place: bool = False) -> Gradients:
    """With `in_place`, the gradient takes the place of the logits, the largest array of the run."""
    out = saved.cross_entropy.logits if in_place else None
    return Gradients(cross_entropy.backward(d_loss, saved.cross_entropy, out=out).logits.reshape(saved.shape))
