"""Decoding: from a prompt, one token at a time.

The book's functions (chapters 4 and 5), with the faults of its `generate` put right: batches work, each row stops at its own
eos, and top_k keeps exactly k tokens where logits tie.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.model import GPTModel
from numpygpt.ops import softmax
from numpygpt.random import TorchGenerator
from numpygpt.shapes import Array, Inexact, Integer


def generate_text_simple(
    model: GPTModel, idx: Any, max_new_tokens: int, context_size: int
) -> Integer[Array, "B _"]:
    """`idx` (B, T) followed by `max_new_tokens` tokens, each the most likely one after the last `context_size` tokens."""
    return generate(model, idx, max_new_tokens, context_size)


def generate(
    model: GPTModel,
    idx: Any,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
    *,
    top_p: float | None = None,
    rng: TorchGenerator | None = None,
) -> Integer[Array, "B _"]:
    """`idx` followed by up to `max_new_tokens` tokens, each chosen from the logits after the last `context_size` tokens.

    idx            (B, T) token ids, the prompts
    temperature    0 takes the most likely token; above 0 samples from softmax(logits / temperature)
    top_k          choose among the k largest logits only; of equal ones, the lowest ids
    eos_id         a row stops when it chooses this id; a stopped row is filled with it until every row has stopped, and the
                   step at which the last row stops is not appended (so a single row ends before its eos)
    top_p          choose among the fewest most probable tokens whose probabilities sum to at least this
    rng            draws the samples, as torch.multinomial does; None: a new generator from fresh entropy

    Returns ids (B, T + new tokens). Raises InputError for a prompt without tokens or with ids outside the vocabulary, and for
    a temperature, top_k, top_p, context_size or max_new_tokens out of range.
    """
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens}; expected 0 or more")
    idx = np.asarray(idx)
    stopped = np.zeros(len(idx), dtype=bool)
    tokens = [idx]
    choices = stream(model, idx, context_size, temperature, top_k, top_p=top_p, rng=rng)
    for _ in range(max_new_tokens):
        chosen = next(choices)
        if eos_id is not None:
            chosen = np.where(stopped, eos_id, chosen)
            stopped = chosen == eos_id
            if stopped.all():
                break
        tokens.append(chosen[:, np.newaxis])
    return np.concatenate(tokens, axis=1)


def stream(
    model: GPTModel,
    idx: Any,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    *,
    top_p: float | None = None,
    rng: TorchGenerator | None = None,
) -> Iterator[Integer[Array, "B"]]:
    """Without end, the next token ids (B) after `idx` (B, T). Arguments and errors as `generate`.

    While the text fits in `context_size`, each step gives the model one new token and the keys and values of those before.
    After that the window slides: every token changes its position with each step, so each step is computed anew.
    """
    if context_size < 1:
        raise InputError(f"context_size is {context_size}; expected at least 1")
    idx = np.asarray(idx)
    if idx.ndim != 2 or 0 in idx.shape:
        raise InputError(f"the prompt has shape {idx.shape}; expected (batch, tokens) with at least one of each")
    _check_sampling(temperature, top_k, top_p)
    rng = TorchGenerator() if rng is None else rng
    past = None
    while True:
        if past is None or idx.shape[1] > context_size:
            logits, past = model.decode(idx[:, -context_size:])
        else:
            logits, past = model.decode(idx[:, -1:], past)
        chosen = choose(logits, temperature, top_k, top_p, rng)
        yield chosen
        idx = np.concatenate([idx, chosen[:, np.newaxis]], axis=1)[:, -context_size - 1 :]


def choose(
    logits: Inexact[Array, "B V"],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    rng: TorchGenerator,
) -> Integer[Array, "B"]:
    """One token id a row, as `generate` describes."""
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if temperature == 0:
        return logits.argmax(axis=-1)
    probabilities = softmax_with_temperature(logits, temperature)
    if top_p is not None:
        probabilities = keep_top_p(probabilities, top_p)
    return rng.multinomial(probabilities)[:, 0]


def keep_top_k(logits: Inexact[Array, "B V"], k: int) -> Inexact[Array, "B V"]:
    """The k largest logits of each row, the rest -inf (Fan et al. 2018, arXiv:1805.04833, section 5.4). Exactly k at ties."""
    largest = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    kept = np.full_like(logits, -np.inf)
    np.put_along_axis(kept, largest, np.take_along_axis(logits, largest, axis=-1), axis=-1)
    return kept


def keep_top_p(probabilities: Inexact[Array, "B V"], p: float) -> Inexact[Array, "B V"]:
    """The nucleus (Holtzman et al. 2020, arXiv:1904.09751, section 3.1): the fewest most probable tokens that together have
    probability p or more; the rest 0. Not rescaled: a multinomial draw needs no sum of 1."""
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=-1)
    before = np.cumsum(ordered, axis=-1) - ordered
    kept = np.zeros_like(probabilities)
    np.put_along_axis(kept, order, np.where(before < p, ordered, 0), axis=-1)
    return kept


def softmax_with_temperature(logits: Inexact[Array, "*rows V"], temperature: float) -> Inexact[Array, "*rows V"]:
    """softmax(logits / temperature) over the last axis: below 1 sharper, above 1 flatter. InputError at 0 or below."""
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature}; expected a number above 0")
    return softmax.forward(np.asarray(logits) / temperature)[0]


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


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature is {temperature}; expected 0 (the most likely token) or above")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k is {top_k}; expected at least 1, or none to choose among all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; expected a number in (0, 1]")
