"""The book's decoding functions on tensors (chapters 4 and 5). Two faults of its `generate` are corrected.

The functions for text give and take one row of token ids (1, T); the generating functions take any batch (B, T).
A model decodes in the mode that it is in: call `model.eval()` first to decode without dropout.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from numpygpt.data import tokenizer as numpygpt_tokenizer
from numpygpt.errors import InputError


def text_to_token_ids(text: str, tokenizer: Any) -> Integer[Tensor, "1 T"]:
    """The token ids of `text` as a batch of one, int64. `<|endoftext|>` becomes the tokenizer's special token."""
    return torch.from_numpy(numpygpt_tokenizer.text_to_token_ids(text, tokenizer))


def token_ids_to_text(token_ids: Integer[Tensor, "..."], tokenizer: Any) -> str:
    """The text of one sequence of token ids, (1, T) or (T). Raises InputError as its namesake in numpygpt does."""
    return numpygpt_tokenizer.token_ids_to_text(token_ids.numpy(force=True), tokenizer)


def generate_text_simple(
    model: nn.Module, idx: Integer[Tensor, "B T"], max_new_tokens: int, context_size: int
) -> Integer[Tensor, "B _"]:
    """`idx` and then `max_new_tokens` tokens, each the most likely one after the last `context_size` tokens.

    Returns ids (B, T + max_new_tokens). Raises InputError as `generate` does.
    """
    return generate(model, idx, max_new_tokens, context_size)


@torch.no_grad()
def generate(
    model: nn.Module,
    idx: Integer[Tensor, "B T"],
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
) -> Integer[Tensor, "B _"]:
    """`idx` and then up to `max_new_tokens` tokens, each chosen after the last `context_size` tokens.

    temperature   0: take the most likely token; above 0: sample from softmax(logits / temperature), with
                  PyTorch's default generator
    top_k         choose only among the k largest logits; of equal logits, the lowest ids are taken first
    eos_id        a row stops when it chooses this id. A stopped row is filled with it until every row has
                  stopped. The step at which the last row stops is not appended, so a single row ends before
                  its eos

    The book's listing differs in two things. It knows no rows that stop at different steps, and if logits tie it may
    keep more than k tokens.

    Raises InputError for a prompt without tokens, and for a number that is out of range.
    """
    if idx.shape[1] == 0:
        raise InputError("the prompt has no tokens; expected at least one to continue from")
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens}; expected 0 or more")
    if context_size < 1:
        raise InputError(f"context_size is {context_size}; expected at least 1")
    stopped = torch.zeros(idx.shape[0], 1, dtype=torch.bool, device=idx.device)
    for _ in range(max_new_tokens):
        logits = model(idx[:, -context_size:])[:, -1]
        next_ids = _choose(logits, temperature, top_k)
        if eos_id is not None:
            next_ids = next_ids.masked_fill(stopped, eos_id)
            stopped = next_ids == eos_id
            if stopped.all():
                break
        idx = torch.cat((idx, next_ids), dim=1)
    return idx


def _choose(logits: Float[Tensor, "B V"], temperature: float, top_k: int | None) -> Integer[Tensor, "B 1"]:
    """One token id for each row."""
    if top_k is not None:
        logits = logits.masked_fill(~_largest(logits, top_k), -math.inf)
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    return torch.multinomial(softmax_with_temperature(logits, temperature), num_samples=1)


def _largest(logits: Float[Tensor, "B V"], k: int) -> Bool[Tensor, "B V"]:
    """True for the k largest logits of each row (all, if k > V). Of equal logits, the lowest ids are taken first."""
    if k < 1:
        raise InputError(f"top_k is {k}; expected at least 1, or None for every token")
    k = min(k, logits.shape[-1])
    smallest_kept = torch.topk(logits, k).values[:, -1:]
    above = logits > smallest_kept
    tied = logits == smallest_kept
    places_left = k - above.sum(dim=-1, keepdim=True)
    return above | (tied & (tied.cumsum(dim=-1) <= places_left))


def softmax_with_temperature(logits: Float[Tensor, "*rows V"], temperature: float) -> Float[Tensor, "*rows V"]:
    """softmax(logits / temperature) over the last axis. A temperature below 1 makes it sharper, one above 1 flatter.

    Raises InputError for a temperature that is not above 0 or not finite.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature}; expected a number above 0")
    return torch.softmax(logits / temperature, dim=-1)


def print_sampled_tokens(probas: Float[Tensor, "V"], inverse_vocab: Sequence[str] | dict[int, str]) -> None:
    """Print how often each token comes up in 1000 draws with seed 123, in a line for each token: `73 x closer`.

    A generator of its own draws them. The book's listing seeds the default generator, which gives the same draws.
    """
    generator = torch.Generator(probas.device).manual_seed(123)
    drawn = torch.cat([torch.multinomial(probas, num_samples=1, generator=generator) for _ in range(1000)])
    for token_id, count in enumerate(drawn.bincount(minlength=len(probas)).tolist()):
        print(f"{count} x {inverse_vocab[token_id]}")
