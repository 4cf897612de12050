"""A model with a larger vocabulary: more rows in the token embedding and in the head, for new special tokens.

The rows of the old tokens stay as they are. A new row is

    "mean"    the mean of the old rows, in the embedding and in the head (Hewitt 2021, "Initializing New Word Embeddings
              for Pretrained Language Models", https://nlp.stanford.edu/~johnhew/vocab-expansion.html)
    "drawn"   drawn as in a new model: N(0, 1) in the embedding, uniform in ±1/√D in the head; if they are tied, N(0, 1)

With means, a new token's logit is the mean of the old tokens' logits. exp of a mean is at most the mean of exp. So with
K new tokens beside V old ones, the sum in the softmax grows at most by the factor 1 + K / V, and no old token loses
more than log(1 + K / V) of its log-probability. Drawn rows have no such bound: a trained model's logits may all lie far
below 0, and a new token whose logit is near 0 would then take all the probability.
"""

import math
from dataclasses import replace

import numpy as np

from numpygpt.data.windows import check_positive
from numpygpt.errors import InputError
from numpygpt.layers import parameters as p
from numpygpt.model.gpt import GPTModel
from numpygpt.model.initialization import initialize
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array

NEW_ROWS = ("mean", "drawn")


def resize_embeddings(
    model: GPTModel,
    vocab_size: int,
    *,
    new_rows: str = "mean",
    seed: int | TorchGenerator = 123,
    multiple_of: int = 1,
) -> GPTModel:
    """The model with a vocabulary of this size. A tied head stays tied, and what is frozen stays frozen.

    vocab_size    V, at least the model's own; it is rounded up to a multiple of `multiple_of`
    new_rows      "mean" or "drawn", as above
    seed          of what is drawn, first for the embedding

    A frozen embedding or head keeps its new rows as they are, too: unfreeze it (`numpygpt.adapt.freeze`) for the model
    to learn new tokens. Raises InputError for a smaller vocabulary, other words for new rows, and a head that has an
    adapter, is quantized or scores classes.
    """
    check_positive(multiple_of=multiple_of)
    if new_rows not in NEW_ROWS:
        raise InputError(f"new_rows is {new_rows!r}; expected one of: {', '.join(NEW_ROWS)}")
    old = model.config.vocab_size
    if vocab_size < old:
        raise InputError(f"the vocabulary has {old} tokens, and cannot shrink to {vocab_size}; expected at least {old}")
    out_head = _head_of_tokens(model)
    size = multiple_of * math.ceil(vocab_size / multiple_of)
    generator = seed if isinstance(seed, TorchGenerator) else TorchGenerator(seed)
    larger = p.Embedding(_with_rows(model.parameters.tok_emb, size, new_rows, generator))
    head = p.Linear(larger.weight if model.config.tie_weights else _with_rows(out_head, size, new_rows, generator))
    resized = model.with_parameters(model.parameters._replace(tok_emb=larger, out_head=head))
    resized.config = replace(model.config, vocab_size=size)
    return resized


def _with_rows(node: p.Embedding | p.Linear, rows: int, new_rows: str, generator: TorchGenerator) -> Array:
    """The node's weight, followed by new rows up to this number."""
    old = node.weight
    weight = np.empty((rows, old.shape[1]), old.dtype)
    weight[: len(old)], added = old, weight[len(old) :]
    if new_rows == "mean":
        added[...] = old.mean(axis=0)
    else:
        initialize(type(node)(added), generator)
    return weight


def _head_of_tokens(model: GPTModel) -> p.Linear:
    """The model's head. InputError for any other than a plain one with a row for each token."""
    head = model.parameters.out_head
    if isinstance(head, p.LoRA):
        raise InputError("the head of the model has an adapter; resize the vocabulary first, then add the adapter")
    if isinstance(head, p.QuantizedLinear):
        raise InputError("the head of the model is quantized; resize the vocabulary first, then quantize the model")
    if head.bias is not None or len(head.weight) != model.config.vocab_size:
        raise InputError(f"the head of the model scores {len(head.weight)} classes, and not tokens; resize its base")
    return head
