"""The objective of the next token with a weight for each token: the answers of a conversation, and nothing else.

    logits    (B, T, V)   scores of each next token
    targets   (B, T)      the ids of the tokens that follow; IGNORE_INDEX if the position does not count
    weights   (B, T)      w of the positions, constants of 0 or more; 0 leaves one out
    loss      ()          in nats

Forward:

    (1)  log_probs = token_log_probs(logits, targets)      with smoothed labels if `smoothing` is not 0
    (2)  loss = weighted_mean(-log_probs, w)               over tokens, over sequences, or the sum

Here w is 0 also where the target is IGNORE_INDEX. With all weights 1, no smoothing and the mean over tokens, this is
`next_token`, which is quicker. Instruction tuning takes the loss of the answers' tokens only (Touvron et al. 2023,
arXiv:2307.09288, section 3.1). The mean over sequences lets a short answer count as much as a long one; the mean over
tokens, each token as much as another.

Derivation: d_log_probs = -d_y, where d_y is what weighted_mean gives each token, and (1) has the gradient of
`token_log_probs`. So for a token that counts

    d_logits = c w d_loss (p - (1 - ε) onehot(target) - ε / V)          c of `weighted_mean`, ε the smoothing

Saved: what the two operations save.
Traps: labels shifted twice, once by who made the targets and once here (here they are not); a mean over all positions,
so that a batch with long prompts learns more slowly; the mean of the micro-batches' means.
"""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.ops import token_log_probs, weighted_mean
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.shapes import Array, Inexact, Integer


class Saved(NamedTuple):
    token_log_probs: token_log_probs.Saved
    weighted_mean: weighted_mean.Saved


def forward(
    logits: Inexact[Array, "B T V"],
    targets: Integer[Array, "B T"],
    weights: Array | None = None,
    *,
    smoothing: float = 0.0,
    over: str = "tokens",
    normalizer: float | None = None,
) -> tuple[Any, Saved]:
    """The loss, a NumPy scalar of the logits' dtype.

    weights                       (B, T), booleans or numbers; None: all 1
    smoothing, over, normalizer   as in `token_log_probs` and `weighted_mean`, for the weights of `effective_weights`

    Raises InputError for a target outside the vocabulary, a smoothing outside [0, 1), and another word than "tokens",
    "sequences" or "sum".
    """
    log_probs, saved = token_log_probs.forward(logits, targets, smoothing=smoothing)  # (1)
    each = effective_weights(targets, weights)
    loss, mean = weighted_mean.forward(-log_probs, each, over=over, normalizer=normalizer)  # (2)
    return loss, Saved(saved, mean)


def effective_weights(targets: Integer[Array, "B T"], weights: Array | None = None) -> Array:
    """The weights (B, T), 0 where the target does not count; `weighted_mean.total` of them is the normalizer."""
    return np.where(targets == IGNORE_INDEX, 0, 1 if weights is None else weights)


class Gradients(NamedTuple):
    logits: Inexact[Array, "B T V"]


def backward(d_loss: Any, saved: Saved) -> Gradients:
    d_log_probs = -weighted_mean.backward(d_loss, saved.weighted_mean).x  # undoes (2)
    return Gradients(token_log_probs.backward(d_log_probs, saved.token_log_probs).logits)  # undoes (1)
