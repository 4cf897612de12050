"""Decoding: from a prompt, one token at a time.

The book's functions (chapters 4 and 5), with the faults of its `generate` put right: batches work, each row stops at
its own eos, and top_k keeps exactly k tokens where logits tie. Prompts of a batch may have different lengths.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from numpygpt.decoding.prompts import Prompts, checked_prompts
from numpygpt.decoding.sampling import check_sampling, choose
from numpygpt.errors import InputError
from numpygpt.layers.key_value_cache import KeyValueCache
from numpygpt.model.gpt import GPTModel
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array, Inexact, Integer


def generate_text_simple(
    model: GPTModel, idx: Any, max_new_tokens: int, context_size: int
) -> Integer[Array, "B _"]:
    """`idx` (B, T) followed by `max_new_tokens` tokens, each the likeliest one after the last `context_size` tokens."""
    ids: Array = generate(model, idx, max_new_tokens, context_size)
    return ids


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
) -> Any:
    """`idx` and up to `max_new_tokens` more tokens, each chosen from the logits after the last `context_size` tokens.

    idx            (B, T) token ids, the prompts; or a list of prompts of different lengths
    temperature    0 takes the most likely token; above 0 samples from softmax(logits / temperature)
    top_k          choose among the k largest logits only; of equal ones, the lowest ids
    eos_id         a row stops when it chooses this id; a stopped row is filled with it until every row has stopped, and
                   the step at which the last row stops is not appended (so a single row ends before its eos)
    top_p          choose among the fewest most probable tokens whose probabilities sum to at least this
    rng            draws the samples, as torch.multinomial does; None: a new generator from fresh entropy

    Returns ids (B, T + new tokens). For prompts of different lengths it returns a list of B arrays without padding;
    each is what its prompt alone gives: it ends before its own eos.

    Raises InputError for a prompt without tokens or with ids outside the vocabulary, and for a temperature, top_k,
    top_p, context_size or max_new_tokens out of range.
    """
    check_max_new_tokens(max_new_tokens)
    check_sampling(temperature, top_k, top_p)
    prompts = checked_prompts(idx, context_size)
    stopped = np.zeros(len(prompts.ids), dtype=bool)
    choices = _stream(model, prompts, context_size, temperature, top_k, top_p, rng)
    text = prompts
    for _ in range(max_new_tokens):
        chosen = next(choices)
        if eos_id is not None:
            chosen = np.where(stopped, eos_id, chosen)
            stopped = chosen == eos_id
            if stopped.all():
                break
        text = text.followed_by(chosen)
    if not prompts.padded:
        return text.ids
    new_tokens = text.ids[:, prompts.ids.shape[1] :]
    return [
        np.concatenate([prompt[start:], _before(eos_id, new)])
        for prompt, start, new in zip(prompts.ids, prompts.starts, new_tokens, strict=True)
    ]


def _before(eos_id: int | None, tokens: Integer[Array, "N"]) -> Array:
    """The tokens up to the first eos."""
    ends = np.flatnonzero(tokens == eos_id) if eos_id is not None else np.array([])
    return tokens[: ends[0]] if ends.size else tokens


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
    check_sampling(temperature, top_k, top_p)
    return _stream(model, checked_prompts(idx, context_size), context_size, temperature, top_k, top_p, rng)


def _stream(
    model: GPTModel,
    text: Prompts,
    context_size: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    rng: TorchGenerator | None,
) -> Iterator[Integer[Array, "B"]]:
    rng = TorchGenerator() if rng is None else rng
    past = None
    while True:
        logits, past = decode_after(model, text, past, context_size)
        chosen = choose(logits, temperature, top_k, top_p, rng)
        yield chosen
        text = text.followed_by(chosen).last(context_size + 1)


def decode_after(
    model: GPTModel, text: Prompts, past: tuple[KeyValueCache, ...] | None, context_size: int
) -> tuple[Inexact[Array, "B V"], tuple[KeyValueCache, ...]]:
    """Logits after the last `context_size` tokens of the text; `past`, if any, is of all but the last token."""
    if past is None or text.ids.shape[1] > context_size:
        window = text.last(context_size)
        return model.decode(window.ids, **window.options(window.ids.shape[1]))
    return model.decode(text.ids[:, -1:], past, **text.options(1))


def check_max_new_tokens(max_new_tokens: int) -> None:
    """InputError for a number of new tokens that is negative."""
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens}; expected 0 or more")
