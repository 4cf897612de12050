"""Where the parameters and the bytes of a model are: the tables of `numpygpt info`, by arithmetic alone."""

from typing import Any, NamedTuple

import numpy as np

from numpygpt.config import GPTConfig


class Row(NamedTuple):
    """A group of parameters: its name, the shape of its matrix or a remark, and how many numbers it holds."""

    name: str
    detail: str
    parameters: int


def parameter_table(config: GPTConfig) -> list[Row]:
    """The rows of the parameter count, the blocks' parts once, multiplied out in the row of all blocks; no total."""
    V, C, D, L = config.vocab_size, config.context_length, config.emb_dim, config.n_layers
    attention = 3 * (D * D + D * config.qkv_bias) + D * D + D
    feed_forward = 4 * D * D + 4 * D + 4 * D * D + D
    norms = 2 * 2 * D
    block = attention + feed_forward + norms
    parts = f"attention {attention:,}, feed-forward {feed_forward:,}, norms {norms:,}"
    return [
        Row("tok_emb", f"({V}, {D})", V * D),
        Row("pos_emb", f"({C}, {D})", C * D) if config.position == "learned" else Row("pos_emb", "fixed sinusoids", 0),
        Row("trf_blocks", f"{L} x {block:,}: {parts}", L * block),
        Row("final_norm", f"scale and shift ({D})", 2 * D),
        Row("out_head", "tied to tok_emb" if config.tie_weights else f"({V}, {D})", 0 if config.tie_weights else V * D),
    ]


def num_parameters(config: GPTConfig) -> int:
    """How many numbers a model of this configuration trains."""
    return sum(row.parameters for row in parameter_table(config))


class TrainingBytes(NamedTuple):
    """Bytes that a training step with AdamW holds at its peak.

    activations   what the forward saves for the backward, with the dropout masks
    logits        the logits and their gradient
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int


def training_bytes(config: GPTConfig, batch_size: int, tokens: int, dtype: Any = np.float32) -> TrainingBytes:
    """Of a step on batch_size x tokens token ids. Temporaries of a single operation come on top."""
    size = np.dtype(dtype).itemsize
    weights = size * num_parameters(config)
    rows = batch_size * tokens
    stream = rows * config.emb_dim
    scores = rows * tokens * config.n_heads
    saved_block = (
        2 * (2 * stream + rows)  # each norm: normalized and its output, inv_std
        + 3 * stream  # queries, keys, values
        + scores  # attn_weights
        + stream  # context_vec
        + 3 * 4 * stream  # GELU: its input, its tanh, its output
    )
    mask_block = 0
    if config.drop_rate:
        saved_block += scores  # attn_weights after dropout
        mask_block = scores + 2 * stream  # booleans, a byte each
    saved = config.n_layers * saved_block + 2 * stream + rows
    masks = config.n_layers * mask_block + stream * bool(config.drop_rate)
    return TrainingBytes(weights, weights, 2 * weights, size * saved + masks, 2 * size * rows * config.vocab_size)
