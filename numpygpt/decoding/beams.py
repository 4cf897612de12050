"""Beam search: a likely whole in place of likely single tokens."""

import math
from typing import Any

import numpy as np

from numpygpt.decoding.generation import check_max_new_tokens, decode_after
from numpygpt.decoding.prompts import Prompts, checked_prompts
from numpygpt.decoding.sampling import refuse_useless_logits
from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import Array, Inexact

#: With this one, the score of a million tokens can still be computed.
LARGEST_PENALTY = 50


def beam_search(
    model: GPTModel,
    idx: Any,
    max_new_tokens: int,
    context_size: int,
    num_beams: int,
    eos_id: int | None = None,
    length_penalty: float = 1.0,
) -> Any:
    """`idx` followed by the best continuation of up to `max_new_tokens` tokens that a beam search finds.

    Each row has a beam: continuations of equal length. A step extends each of them by every token, and the `num_beams`
    extensions whose tokens have the largest log-probabilities together are the new beam. One that ends with eos is
    complete and leaves the beam, which is one narrower then (Sutskever et al. 2014, arXiv:1409.3215, section 3.2);
    after max_new_tokens all are complete. The best complete one has the largest

        score = sum of its log-probabilities / length ** length_penalty

    num_beams        1 decodes greedily; as many as there are continuations, and the search is exhaustive
    eos_id           rows are filled with it to equal lengths, as by `generate`; it counts in the length and in the sum
    length_penalty   0 compares the sums, which favors short continuations, 1 the means; above 1 favors long ones

    Returns ids (B, T + new tokens), or a list of rows as `generate`.

    Raises InputError as `generate`, and for num_beams or length_penalty out of range.
    """
    check_max_new_tokens(max_new_tokens)
    prompts = checked_prompts(idx, context_size)
    if num_beams < 1:
        raise InputError(f"num_beams is {num_beams}; expected at least 1")
    if not abs(length_penalty) <= LARGEST_PENALTY:
        raise InputError(
            f"length_penalty is {length_penalty}; expected a number from {-LARGEST_PENALTY} to {LARGEST_PENALTY}"
        )
    rows = np.arange(len(prompts.ids))[:, np.newaxis]
    beams = prompts.ids[:, np.newaxis]  # (B, N, tokens): prompts and continuations, the likeliest first
    log_probs = np.zeros(beams.shape[:2])  # (B, N): of each continuation; -inf if the beam is narrower
    widths = np.full((len(beams), 1), num_beams)  # (B, 1): how many continuations a beam may have
    complete = [(-math.inf, prompt) for prompt in prompts.ids]
    past = None
    for length in range(1, max_new_tokens + 1):
        B, N, tokens = beams.shape
        text = Prompts(beams.reshape(B * N, tokens), np.repeat(prompts.starts, N))
        logits, past = decode_after(model, text, past, context_size)
        refuse_useless_logits(logits)
        extended = log_probs[..., np.newaxis] + _log_softmax(logits).reshape(B, N, -1)
        best = np.argsort(-extended.reshape(B, -1), axis=1, kind="stable")[:, :num_beams]
        parents, token_ids = np.divmod(best, logits.shape[1])
        log_probs = extended[rows, parents, token_ids]
        log_probs[np.arange(best.shape[1]) >= widths] = -math.inf
        chosen = token_ids[..., np.newaxis]  # without a dtype, uint64 prompts beside them would become floats
        beams = np.concatenate([beams[rows, parents], chosen], axis=2, dtype=np.int64, casting="unsafe")
        past = tuple(cache.rows((rows * N + parents).ravel()) for cache in past)
        ended = token_ids == eos_id
        for row, n in np.argwhere((ended | (length == max_new_tokens)) & (log_probs > -math.inf)):
            score = log_probs[row, n] / length**length_penalty
            if score > complete[row][0]:
                complete[row] = (score, beams[row, n, :-1] if ended[row, n] else beams[row, n])
        widths -= (ended & (log_probs > -math.inf)).sum(axis=1, keepdims=True)
        log_probs[ended] = -math.inf
        if (log_probs == -math.inf).all():
            break
    if prompts.padded:
        return [text[start:] for (_, text), start in zip(complete, prompts.starts, strict=True)]
    longest = max(len(text) for _, text in complete)
    return np.stack([np.pad(text, (0, longest - len(text)), constant_values=eos_id or 0) for _, text in complete])


def _log_softmax(logits: Inexact[Array, "*rows V"]) -> Inexact[Array, "*rows V"]:
    """log(softmax(logits)) in float64, finite also if the probability itself would be 0."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
