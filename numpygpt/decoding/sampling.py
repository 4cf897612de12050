"""Choosing the next token from its logits: greedy, temperature, top-k, top-p."""

import math
from collections.abc import Sequence

import numpy as np

from numpygpt.errors import InputError
from numpygpt.ops import softmax
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array, Inexact, Integer


def choose(
    logits: Inexact[Array, "B V"],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    rng: TorchGenerator,
) -> Integer[Array, "B"]:
    """One token id a row, as `generate` describes. InputError as `refuse_useless_logits`."""
    refuse_useless_logits(logits)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if temperature == 0:
        return logits.argmax(axis=-1)
    probabilities = softmax_with_temperature(logits, temperature)
    if top_p is not None:
        probabilities = keep_top_p(probabilities, top_p)
    return rng.multinomial(probabilities)[:, 0]


def keep_top_k(logits: Inexact[Array, "B V"], k: int) -> Inexact[Array, "B V"]:
    """The k largest logits of each row, the rest -inf (Fan et al. 2018, arXiv:1805.04833, section 5.4).

    Exactly k at ties.
    """
    largest = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    kept = np.full_like(logits, -np.inf)
    np.put_along_axis(kept, largest, np.take_along_axis(logits, largest, axis=-1), axis=-1)
    return kept


def keep_top_p(probabilities: Inexact[Array, "B V"], p: float) -> Inexact[Array, "B V"]:
    """The nucleus (Holtzman et al. 2020, arXiv:1904.09751, section 3.1).

    The fewest most probable tokens that together have probability p or more, so that the rest has less than 1 - p; the
    rest 0. With p = 1, every token whose probability is not 0. Not rescaled: a multinomial draw needs no sum of 1.
    """
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=-1)
    from_here = np.cumsum(ordered[..., ::-1], axis=-1, dtype=np.float64)[..., ::-1]  # the smallest are added up first
    in_nucleus = from_here > 1 - p
    in_nucleus[..., 0] = True  # also for a p so small that 1 - p is 1
    kept = np.zeros_like(probabilities)
    np.put_along_axis(kept, order, np.where(in_nucleus, ordered, 0), axis=-1)
    return kept


def softmax_with_temperature(logits: Inexact[Array, "*rows V"], temperature: float) -> Inexact[Array, "*rows V"]:
    """softmax(logits / temperature) over the last axis: below 1 sharper, above 1 flatter. InputError at 0 or below.

    The largest logit of each row is subtracted first. So the quotients that overflow, at a very low temperature, are
    those of the other logits, whose probability is 0 then; equal largest ones share the probability.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature}; expected a number above 0")
    logits = np.asarray(logits)
    lowest = float(np.finfo(logits.dtype).tiny)  # a lower one might be 0 in the dtype of the logits
    with np.errstate(over="ignore"):
        scaled = (logits - logits.max(axis=-1, keepdims=True)) / max(temperature, lowest)
    return softmax.forward(scaled)[0]


def print_sampled_tokens(
    probas: Inexact[Array, "V"], inverse_vocab: Sequence[str] | dict[int, str], rng: TorchGenerator | None = None
) -> None:
    """Print how often each token comes up in 1000 draws, a line a token: `73 x closer`.

    rng   None: TorchGenerator(123), the seed of the book's listing
    """
    rng = TorchGenerator(123) if rng is None else rng
    drawn = [rng.multinomial(probas).item() for _ in range(1000)]
    for token_id, count in enumerate(np.bincount(drawn, minlength=len(probas))):
        print(f"{count} x {inverse_vocab[token_id]}")


def refuse_useless_logits(logits: Inexact[Array, "B V"]) -> None:
    """InputError for a logit that is NaN or +inf, and for a row in which all are -inf."""
    if not np.isfinite(logits.max(axis=-1)).all():
        raise InputError("the model's logits are not finite: its weights are damaged or too large")


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """InputError for a temperature, top_k or top_p out of range."""
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature is {temperature}; expected 0 (the most likely token) or above")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k is {top_k}; expected at least 1, or none to choose among all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; expected a number in (0, 1]")
