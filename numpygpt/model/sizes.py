"""Where the parameters and the bytes of a model are: the tables of `numpygpt info`, by arithmetic alone."""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.model.config import ATTENTIONS, GPTConfig
from numpygpt.process import machine_memory


class Row(NamedTuple):
    """A group of parameters: its name, the shape of its matrix or a remark, and how many values it holds."""

    name: str
    detail: str
    parameters: int


def parameter_table(config: GPTConfig) -> list[Row]:
    """The rows of the parameter count, the blocks' parts once, multiplied out in the row of all blocks; no total."""
    V, C, D, L = config.vocab_size, config.context_length, config.emb_dim, config.n_layers
    attention = 3 * (D * D + D * config.qkv_bias) + D * D + D * config.bias
    feed_forward = 4 * D * D + 4 * D * D + (4 * D + D) * config.bias
    norm = D + D * config.bias
    norms = 2 * norm
    block = attention + feed_forward + norms
    parts = f"attention {attention:,}, feed-forward {feed_forward:,}, norms {norms:,}"
    return [
        Row("tok_emb", f"({V}, {D})", V * D),
        Row("pos_emb", f"({C}, {D})", C * D) if config.position == "learned" else Row("pos_emb", "fixed sinusoids", 0),
        Row("trf_blocks", f"{L} x {block:,}: {parts}", L * block),
        Row("final_norm", f"scale and shift ({D})" if config.bias else f"scale ({D})", norm),
        _head(config),
    ]


def _head(config: GPTConfig) -> Row:
    V, D, classes = config.vocab_size, config.emb_dim, config.classes
    if classes is not None:
        return Row("out_head", f"({classes}, {D}) and a bias", classes * (D + 1))
    return Row("out_head", "tied to tok_emb", 0) if config.tie_weights else Row("out_head", f"({V}, {D})", V * D)


def num_parameters(config: GPTConfig) -> int:
    """How many values a model of this configuration trains."""
    return sum(row.parameters for row in parameter_table(config))


def matrices_of_blocks(config: GPTConfig) -> int:
    """How many of these values are in the matrices of the blocks' linear layers."""
    return config.n_layers * (4 + 2 * 4) * config.emb_dim**2


class TrainingBytes(NamedTuple):
    """Bytes that a training step holds.

    optimizer     the moments of the optimizer
    activations   what the forward keeps for the backward, with the dropout masks; with checkpoint_activations, also
                  what one block keeps when it is computed again
    logits        the logits, whose gradient takes their place
    peak          the most at one time; the temporaries of a single operation come on top
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    peak: int


def training_bytes(
    config: GPTConfig,
    batch_size: int,
    tokens: int,
    dtype: Any = np.float32,
    *,
    attention: str = "math",
    checkpoint_activations: bool = False,
    optimizer: int | None = None,
) -> TrainingBytes:
    """Of a step on batch_size x tokens token ids, with the options of `GPTModel`.

    optimizer   bytes of the optimizer's moments in memory; None: AdamW's two of every parameter
    """
    if attention not in ATTENTIONS:
        raise InputError(f"attention is {attention!r}; expected {' or '.join(map(repr, ATTENTIONS))}")
    size = np.dtype(dtype).itemsize
    rows = batch_size * tokens
    stream = size * rows * config.emb_dim
    block = _saved_block(config, batch_size, tokens, size, attention)
    if checkpoint_activations:
        blocks, last = config.n_layers * stream, block  # each block's input, and the one block that is computed again
    else:
        blocks, last = config.n_layers * block, 0
    mask_block = _mask_block(config, batch_size, tokens)
    masks = config.n_layers * mask_block + rows * config.emb_dim * bool(config.drop_rate)
    activations = blocks + last + 2 * stream + size * rows + masks  # and the final norm's
    weights = size * num_parameters(config)
    logits = size * rows * config.scores
    table = size * config.vocab_size * config.emb_dim
    head_only = weights - table * (not config.tie_weights)  # the gradients before the embeddings'
    backward_begins = activations + size * config.scores * config.emb_dim  # the head's gradient
    last_block = head_only + block + mask_block
    backward_ends = head_only + table
    moments = 2 * weights if optimizer is None else optimizer
    peak = weights + moments + logits + max(backward_begins, last_block, backward_ends)
    return TrainingBytes(weights, weights, moments, activations, logits, peak)


def tuning_bytes(whole: TrainingBytes, *, weights: int, gradients: int, optimizer: int) -> TrainingBytes:
    """Of a step that trains a part of a model, where `whole` is that of a step on as many tokens that trains all of it.

    The peak is all of it at once: gradients of a part are small, and their temporaries are not counted.
    """
    peak = weights + gradients + optimizer + whole.activations + whole.logits
    return TrainingBytes(weights, gradients, optimizer, whole.activations, whole.logits, peak)


def decoding_bytes(config: GPTConfig, sequences: int, dtype: Any = np.float32) -> int:
    """Bytes of a beam search with so many sequences side by side: the weights, the caches, the logits, and their sort.

    For each logit, the sort takes two scores in float64, of which one is negated, and an index in int64.
    """
    size = np.dtype(dtype).itemsize
    cache = size * 2 * config.n_layers * config.context_length * config.emb_dim
    return size * num_parameters(config) + sequences * (cache + (size + 3 * 8) * config.vocab_size)


def scoring_bytes(config: GPTConfig, batch_size: int, tokens: int, dtype: Any = np.float32) -> int:
    """Bytes of the logits of batch_size x tokens token ids, and of the weights."""
    return np.dtype(dtype).itemsize * (num_parameters(config) + batch_size * tokens * config.scores)


def check_memory(needed: int, what: str) -> None:
    """Raise InputError if `what` needs more bytes than this machine has. Nothing is allocated to find out.

    Where the memory of the machine is unknown, nothing is raised.
    """
    memory = machine_memory()
    if memory is not None and needed > memory:
        raise InputError(
            f"{what} needs at least {_gibibytes(needed)} of memory, and this machine has {_gibibytes(memory)}: "
            f"make it smaller"
        )


def _gibibytes(size: int) -> str:
    tenths = -(-10 * size // 2**30)  # rounded up, in integers of any size
    return f"{tenths // 10:,}.{tenths % 10} GiB"


def _saved_block(config: GPTConfig, batch_size: int, tokens: int, size: int, attention: str) -> int:
    """Bytes that a block's forward saves, without the masks."""
    rows = batch_size * tokens
    stream = rows * config.emb_dim
    scores = rows * tokens * config.n_heads
    math = scores * (2 if config.drop_rate else 1)  # the weights before and after dropout
    flash = 2 * rows * config.n_heads  # highest and total
    return size * (
        2 * (2 * stream + rows)  # each norm: normalized and its output, inv_std
        + 3 * stream  # queries, keys, values
        + (flash if attention == "flash" else math)
        + stream  # context_vec
        + 3 * 4 * stream  # GELU: its input, the share of it that passes, its output
    )


def _mask_block(config: GPTConfig, batch_size: int, tokens: int) -> int:
    """Bytes of a block's dropout masks, one for each boolean."""
    rows = batch_size * tokens
    return (rows * tokens * config.n_heads + 2 * rows * config.emb_dim) * bool(config.drop_rate)
