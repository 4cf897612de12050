"""Decoding: from a prompt, one token at a time.

The book's functions (chapters 4 and 5), with the faults of its `generate` put right: batches work, each row stops at
its own eos, and top_k keeps exactly k tokens where logits tie. Beside them beam search, which looks for a likely whole.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.layers.key_value_cache import KeyValueCache
from numpygpt.model import GPTModel
from numpygpt.ops import softmax
from numpygpt.random import TorchGenerator
from numpygpt.shapes import Array, Inexact, Integer


def generate_text_simple(
    model: GPTModel, idx: Any, max_new_tokens: int, context_size: int
) -> Integer[Array, "B _"]:
    """`idx` (B, T) followed by `max_new_tokens` tokens, each the likeliest one after the last `context_size` tokens."""
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
    """`idx` and up to `max_new_tokens` more tokens, each chosen from the logits after the last `context_size` tokens.

    idx            (B, T) token ids, the prompts
    temperature    0 takes the most likely token; above 0 samples from softmax(logits / temperature)
    top_k          choose among the k largest logits only; of equal ones, the lowest ids
    eos_id         a row stops when it chooses this id; a stopped row is filled with it until every row has stopped, and
                   the step at which the last row stops is not appended (so a single row ends before its eos)
    top_p          choose among the fewest most probable tokens whose probabilities sum to at least this
    rng            draws the samples, as torch.multinomial does; None: a new generator from fresh entropy

    Returns ids (B, T + new tokens). Raises InputError for a prompt without tokens or with ids outside the vocabulary,
    and for a temperature, top_k, top_p, context_size or max_new_tokens out of range.
    """
    _check_max_new_tokens(max_new_tokens)
    idx = _checked_prompt(idx, context_size)
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

    While the text fits in `context_size`, each step gives the model one new token and the keys and values of those
    before. After that the window slides: every token changes its position with each step, so each step is computed
    anew.
    """
    idx = _checked_prompt(idx, context_size)
    check_sampling(temperature, top_k, top_p)
    rng = TorchGenerator() if rng is None else rng
    past = None
    while True:
        logits, past = _decode_after(model, idx, past, context_size)
        chosen = choose(logits, temperature, top_k, top_p, rng)
        yield chosen
        idx = np.concatenate([idx, chosen[:, np.newaxis]], axis=1)[:, -context_size - 1 :]


def _decode_after(
    model: GPTModel, idx: Array, past: tuple[KeyValueCache, ...] | None, context_size: int
) -> tuple[Inexact[Array, "B V"], tuple[KeyValueCache, ...]]:
    """Logits after the last `context_size` tokens of idx; `past`, if any, is of all but the last token."""
    if past is None or idx.shape[1] > context_size:
        return model.decode(idx[:, -context_size:])
    return model.decode(idx[:, -1:], past)


def beam_search(
    model: GPTModel,
    idx: Any,
    max_new_tokens: int,
    context_size: int,
    num_beams: int,
    eos_id: int | None = None,
    length_penalty: float = 1.0,
) -> Integer[Array, "B _"]:
    """`idx` followed by the best continuation of up to `max_new_tokens` tokens that a beam search finds.

    Each row has a beam: continuations of equal length. A step extends each of them by every token, and the `num_beams`
    extensions whose tokens have the largest log-probabilities together are the new beam. One that ends with eos is
    complete and leaves the beam, which is one narrower then (Sutskever et al. 2014, arXiv:1409.3215, section 3.2);
    after max_new_tokens all are complete. The best complete one has the largest

        score = sum of its log-probabilities / length ** length_penalty

    num_beams        1 decodes greedily; as many as there are continuations, and the search is exhaustive
    eos_id           rows are filled with it to equal lengths, as by `generate`; it counts in the length and in the sum
    length_penalty   0 compares the sums, which favors short continuations, 1 the means; above 1 favors long ones

    Returns ids (B, T + new tokens). Raises InputError as `generate`, and for num_beams or length_penalty out of range.
    """
    _check_max_new_tokens(max_new_tokens)
    idx = _checked_prompt(idx, context_size)
    if num_beams < 1:
        raise InputError(f"num_beams is {num_beams}; expected at least 1")
    if not math.isfinite(length_penalty):
        raise InputError(f"length_penalty is {length_penalty}; expected a finite number")
    rows = np.arange(len(idx))[:, np.newaxis]
    beams = idx[:, np.newaxis]  # (B, N, tokens): prompts and continuations, the likeliest first
    log_probs = np.zeros(beams.shape[:2])  # (B, N): of each continuation; -inf where the beam is narrower
    complete = [(-math.inf, prompt) for prompt in idx]
    past = None
    for length in range(1, max_new_tokens + 1):
        B, N, tokens = beams.shape
        logits, past = _decode_after(model, beams.reshape(B * N, tokens), past, context_size)
        extended = log_probs[..., np.newaxis] + _log_softmax(logits).reshape(B, N, -1)
        best = np.argsort(-extended.reshape(B, -1), axis=1, kind="stable")[:, :num_beams]
        parents, token_ids = np.divmod(best, logits.shape[1])
        log_probs = extended[rows, parents, token_ids]
        beams = np.concatenate([beams[rows, parents], token_ids[..., np.newaxis]], axis=2)
        past = tuple(cache.rows((rows * N + parents).ravel()) for cache in past)
        ended = token_ids == eos_id
        for row, n in np.argwhere((ended | (length == max_new_tokens)) & (log_probs > -math.inf)):
            score = log_probs[row, n] / length**length_penalty
            if score > complete[row][0]:
                complete[row] = (score, beams[row, n, :-1] if ended[row, n] else beams[row, n])
        log_probs[ended] = -math.inf
        if (log_probs == -math.inf).all():
            break
    longest = max(len(text) for _, text in complete)
    return np.stack([np.pad(text, (0, longest - len(text)), constant_values=eos_id or 0) for _, text in complete])


def _log_softmax(logits: Inexact[Array, "*rows V"]) -> Inexact[Array, "*rows V"]:
    """log(softmax(logits)) in float64, finite also where the probability itself would be 0."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


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
    """The k largest logits of each row, the rest -inf (Fan et al. 2018, arXiv:1805.04833, section 5.4).

    Exactly k at ties.
    """
    largest = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    kept = np.full_like(logits, -np.inf)
    np.put_along_axis(kept, largest, np.take_along_axis(logits, largest, axis=-1), axis=-1)
    return kept


def keep_top_p(probabilities: Inexact[Array, "B V"], p: float) -> Inexact[Array, "B V"]:
    """The nucleus (Holtzman et al. 2020, arXiv:1904.09751, section 3.1).

    The fewest most probable tokens that together have probability p or more; the rest 0. Not rescaled: a multinomial
    draw needs no sum of 1.
    """
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


def _check_max_new_tokens(max_new_tokens: int) -> None:
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens}; expected 0 or more")


def _checked_prompt(idx: Any, context_size: int) -> Array:
    if context_size < 1:
        raise InputError(f"context_size is {context_size}; expected at least 1")
    idx = np.asarray(idx)
    if idx.ndim != 2 or 0 in idx.shape:
        raise InputError(f"the prompt has shape {idx.shape}; expected (batch, tokens) with at least one of each")
    return idx


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """InputError for a temperature, top_k or top_p out of range."""
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature is {temperature}; expected 0 (the most likely token) or above")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k is {top_k}; expected at least 1, or none to choose among all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; expected a number in (0, 1]")
