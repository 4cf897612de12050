"""Answers to prompts, with the log-probability of each token as it was drawn: what learning from rewards begins with.

    prompts     N sequences of token ids, of any lengths
    answers     N sequences of new token ids; an answer ends with `end_id` if the model has written it
    log_probs   the log-probability of each of these tokens, under softmax(logits / temperature)

A token's log-probability is taken from the logits that it was drawn from. It equals the one that a forward over prompt
and answer gives, except for rounding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numpygpt.decoding.generation import check_max_new_tokens, decode_after
from numpygpt.decoding.prompts import checked_prompts
from numpygpt.decoding.sampling import check_sampling, choose
from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.ops import token_log_probs
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array, Integer


class Answer(NamedTuple):
    """New tokens (S), up to the one that ends the answer if the model has written it; their log-probabilities (S)."""

    token_ids: Integer[Array, "S"]
    log_probs: Array

    def has_ended(self, end_id: int | None) -> bool:
        """Whether the model has ended the answer itself."""
        return end_id is not None and bool(len(self.token_ids)) and int(self.token_ids[-1]) == end_id


def answers(
    model: GPTModel,
    prompts: Sequence[Any],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    end_id: int | None = None,
    rng: TorchGenerator | None = None,
) -> list[Answer]:
    """An answer to each prompt.

    max_new_tokens   the longest answer; a prompt and it have to fit in the context
    temperature      0 takes the likeliest token, and its log-probability at temperature 1
    end_id           the token that ends an answer; None: all are as long as they may be
    rng              draws the tokens; None: a new generator from fresh entropy

    Raises InputError as `generate`, and for a prompt that leaves no room for the longest answer.
    """
    check_max_new_tokens(max_new_tokens)
    check_sampling(temperature, None, None)
    context = model.config.context_length
    refuse_full_context([len(prompt) for prompt in prompts], max_new_tokens, context)
    text, past = checked_prompts(list(prompts), context), None
    rng = TorchGenerator() if rng is None else rng
    drawn: list[Array] = []
    scored: list[Array] = []
    going = np.ones(len(text.ids), bool)
    still: list[Array] = []
    while len(drawn) < max_new_tokens and going.any():
        logits, past = decode_after(model, text, past, context)
        chosen = choose(logits, temperature, None, None, rng)
        drawn.append(chosen)
        scored.append(token_log_probs.forward(logits / (temperature or 1), chosen)[0])
        still.append(going)
        going = going & (chosen != end_id) if end_id is not None else going
        text = text.followed_by(chosen)
    lengths = np.sum(still, axis=0) if still else np.zeros(len(text.ids), int)
    rows = zip(np.transpose(drawn), np.transpose(scored), lengths, strict=True) if drawn else ()
    found = [Answer(ids[:length].astype(np.int64), log_probs[:length]) for ids, log_probs, length in rows]
    return found or [Answer(np.zeros(0, np.int64), np.zeros(0, model.dtype)) for _ in text.ids]


def refuse_full_context(lengths: Sequence[int], max_new_tokens: int, context_length: int) -> None:
    """InputError for a prompt of such a length that the longest answer does not fit in the context."""
    longest = max(lengths, default=0)
    if longest + max_new_tokens > context_length:
        raise InputError(
            f"prompt {lengths.index(longest)} has {longest} tokens, and an answer may have {max_new_tokens}; together "
            f"they may have {context_length}, the model's context: shorten the prompt or the answers"
        )
