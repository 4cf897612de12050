"""Models that say what they are told to, for the tests of conversations."""

from itertools import pairwise

import numpy as np

from numpygpt import GPTConfig, GPTModel, get_tokenizer
from numpygpt.data.tokenizer import ENDOFTEXT
from numpygpt.formats.checkpoint import write_checkpoint
from numpygpt.model.saving import model_section

TOKENIZER = get_tokenizer(f"bytes+{ENDOFTEXT}")
END = TOKENIZER.eot_token


def model_that_says(follows, context_length=200, tokenizer=TOKENIZER):
    """A model whose likeliest next token depends on the last one alone: {token: the next}; of any other, the last.

    A token is a number, or text of one byte.
    """
    size = tokenizer.n_vocab + tokenizer.n_vocab % 2
    config = GPTConfig(
        size, context_length=context_length, emb_dim=size, n_heads=1, n_layers=1, drop_rate=0.0, qkv_bias=False
    )
    model = GPTModel(config)
    arrays = model.named_parameters()
    for array in arrays.values():
        array[...] = 0
    arrays["final_norm.scale"][...] = 1
    arrays["tok_emb.weight"][...] = np.eye(size)
    following = np.arange(size)
    for token, after in follows.items():
        following[_id(token)] = _id(after)
    arrays["out_head.weight"][following, np.arange(size)] = 1
    return model


def chain(*tokens):
    """{token: the next} of tokens that follow one another."""
    return dict(pairwise(tokens))


def saved(folder, model, tokenizer=TOKENIZER):
    """The folder, with a checkpoint of the model in it."""
    return write_checkpoint(folder, {"model": model_section(model, tokenizer.name)}).parent


def _id(token):
    return ord(token) if isinstance(token, str) else token
