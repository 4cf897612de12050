"""The body of a GPT: from token ids, or embeddings, to the final norm (Radford et al. 2019, section 2.3).

    in_idx   (B, T)      token ids, T <= C; or embeddings (B, T, D) in their place
    x        (B, T, D)   the residual stream
    hidden   (B, T, D)   output: what a head reads

    (1)  x = dropout(tok_emb[in_idx] + pos_emb[positions])
    (2)  x = block(x), for each transformer block
    (3)  hidden = final_norm(x)

The sum in (1) gives its gradient to both terms. Positions that the sequences of a batch share get the sum of their
gradients. Sinusoidal positions are constants and have no gradient.

This is the only composition: training, inference and decoding with a cache differ in its options. The blocks before
the first trained parameter save nothing, and the backward ends there. If nothing is trained, no block saves anything.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from numpygpt.layers import parameters as p
from numpygpt.layers import recomputed_block, transformer_block
from numpygpt.layers.key_value_cache import KeyValueCache
from numpygpt.layers.projections import Path
from numpygpt.numerics import casting
from numpygpt.numerics.autocast import EXACT, Precision
from numpygpt.ops import dropout, embedding, layer_norm
from numpygpt.random.masks import RandomSource, draw_keep_mask
from numpygpt.shapes import Array, Bool, Inexact, Integer
from numpygpt.tree import Trained, any_trained, everything, nowhere, wanted, within
from numpygpt.watch import Watch, under, unwatched


class DropoutMasks(NamedTuple):
    """Which elements stay at every dropout site of the body; and on the paths of low rank, by `projections.Path`."""

    embedding: Bool[Array, "B T D"] | None
    blocks: tuple[transformer_block.DropoutMasks, ...]
    paths: Mapping[Path, Bool[Array, "B T ..."]] = {}


def draw_masks(
    rng: RandomSource, shape: tuple[int, int, int], n_heads: int, n_layers: int, drop_rate: float
) -> DropoutMasks:
    """Masks for x of this shape (B, T, D), in the order in which PyTorch draws them during a forward."""
    return DropoutMasks(
        draw_keep_mask(rng, shape, drop_rate),
        tuple(transformer_block.draw_masks(rng, shape, n_heads, drop_rate) for _ in range(n_layers)),
    )


class Saved(NamedTuple):
    """What the backward needs, part by part; None for a table or a block that has no gradient to compute.

    wants_inputs   whether the inputs are embeddings whose gradient will be asked for
    wanted         whether the gradient of the output has any use
    present        each block's cache with these tokens, if the forward was given a past
    """

    tok_emb: embedding.Saved | None
    pos_emb: embedding.Saved | None
    drop_emb: dropout.Saved
    trf_blocks: list[transformer_block.Saved | recomputed_block.Saved | None]
    final_norm: layer_norm.Saved | casting.Saved
    parameters: p.Body
    wants_inputs: bool
    wanted: bool
    present: tuple[KeyValueCache, ...]


def forward(
    inputs: Integer[Array, "B T"] | Inexact[Array, "B T D"],
    parameters: p.Body,
    *,
    n_heads: int,
    positions: Integer[Array, "B T"] | Integer[Array, "T"] | None = None,
    visible: Literal["causal", "all"] | Bool[Array, "B 1 T S"] = "causal",
    masks: DropoutMasks | None = None,
    drop_rate: float = 0.0,
    past: Sequence[KeyValueCache] = (),
    flash: bool = False,
    activation: str = "gelu_tanh",
    norm_eps: float = 1e-5,
    recompute: bool = False,
    precision: Precision = EXACT,
    wants_x: bool = False,
    trained: Trained = everything,
    watch: Watch = unwatched,
) -> tuple[Inexact[Array, "B T D"], Saved]:
    """The body's output for each position.

    inputs      token ids, or embeddings in the place of theirs
    positions   of the tokens; None: 0, 1, ... in each sequence, after those of `past`
    visible     which keys a query may see (`numpygpt.ops.visible`); S is T and the length of `past` together
    masks       of dropout; None: no dropout
    past        each block's cache of earlier tokens; () without caches
    flash       attention tile by tile (`numpygpt.ops.flash_attention`)
    activation  between the layers of each feed-forward network (`numpygpt.layers.feed_forward`)
    norm_eps    what the norms add to the variance
    recompute   save each block's input alone (`numpygpt.layers.recomputed_block`)
    precision   the format in which each operation runs (`numpygpt.numerics.autocast`)
    wants_x     whether the gradient of embeddings given as `inputs` will be asked for
    trained     which parameters are trained (`numpygpt.tree`)
    """
    T, L = inputs.shape[1], len(parameters.trf_blocks)
    if masks is None:
        masks = DropoutMasks(None, (transformer_block.NO_MASKS,) * L)
    if positions is None:
        positions = np.arange(T) + (past[0].length if past else 0)

    embeddings_given = inputs.ndim == 3
    tokens, tok_emb = inputs, None
    if not embeddings_given:
        tokens, tok_emb = _looked_up(inputs, parameters.tok_emb, within(trained, "tok_emb"))
    watch("tok_emb", tokens)
    located, pos_emb = _looked_up(positions, parameters.pos_emb, within(trained, "pos_emb"))
    watch("pos_emb", located)
    x, drop_emb = dropout.forward(tokens + located, masks.embedding, drop_rate=drop_rate)  # (1)
    watch("drop_emb", x)
    wants_inputs = wants_x and embeddings_given
    wants = wants_inputs or tok_emb is not None or pos_emb is not None
    saved_blocks: list[Any] = []
    present = []
    for i, block in enumerate(parameters.trf_blocks):
        trained_block = within(trained, f"trf_blocks.{i}")
        wanted_here = wants or any_trained(block, trained_block)
        layer = recomputed_block if recompute and wanted_here and not past else transformer_block
        x, saved = layer.forward(  # (2)
            x,
            block,
            n_heads=n_heads,
            visible=visible,
            masks=masks.blocks[i],
            drop_rate=drop_rate,
            past=past[i] if past else None,
            flash=flash,
            activation=activation,
            norm_eps=norm_eps,
            precision=precision,
            wants_x=wants,
            trained=trained_block,
            watch=under(watch, f"trf_blocks.{i}"),
        )
        watch(f"trf_blocks.{i}", x)
        if past:
            present.append(saved.att.present)
        saved_blocks.append(saved if wanted_here else None)
        del saved
        wants = wanted_here
    norm_wanted = wanted(within(trained, "final_norm"), "scale", "shift", x=wants)
    hidden, final_norm = casting.forward(  # (3)
        layer_norm, precision.layer_norm, x, *parameters.final_norm, eps=norm_eps, wanted=norm_wanted
    )
    watch("final_norm", hidden)
    return hidden, Saved(
        tok_emb,
        pos_emb,
        drop_emb,
        saved_blocks,
        final_norm,
        parameters,
        wants_inputs,
        wanted=bool(norm_wanted),
        present=tuple(present),
    )


class Gradients(NamedTuple):
    """Of the embeddings given as inputs, if they are wanted, and of the parameters."""

    inputs: Inexact[Array, "B T D"] | None
    parameters: p.Body


def backward(
    d_hidden: Inexact[Array, "B T D"], saved: Saved, *, consume: bool = False, watch: Watch = unwatched
) -> Gradients:
    """Of a forward without `past`.

    consume   drop what a block saved as soon as it is used, so that gradients take the place of activations; `saved`
              then serves for this one backward
    """
    d_parameters: Any = nowhere(saved.parameters)
    watch("d_final_norm", d_hidden)
    d_x, *d_final_norm = casting.backward(layer_norm, d_hidden, saved.final_norm)  # undoes (3)
    d_parameters = d_parameters._replace(final_norm=p.LayerNorm._make(d_final_norm))
    d_blocks = list(d_parameters.trf_blocks)
    for i in reversed(range(len(d_blocks))):
        saved_block = saved.trf_blocks.pop() if consume else saved.trf_blocks[i]
        if d_x is None or saved_block is None:
            break
        watch(f"d_trf_blocks.{i}", d_x)
        layer = recomputed_block if isinstance(saved_block, recomputed_block.Saved) else transformer_block
        d_x, d_blocks[i] = layer.backward(d_x, saved_block, watch=under(watch, f"trf_blocks.{i}"))  # undoes (2)
        del saved_block
    d_parameters = d_parameters._replace(trf_blocks=tuple(d_blocks))
    if d_x is None or not (saved.wants_inputs or saved.tok_emb or saved.pos_emb):
        return Gradients(None, d_parameters)
    watch("d_drop_emb", d_x)
    d_embedded = dropout.backward(d_x, saved.drop_emb).x  # undoes (1)
    if saved.pos_emb is not None:
        d_positions = d_embedded.sum(axis=0) if saved.pos_emb.ids.ndim == 1 else d_embedded
        watch("d_pos_emb", d_positions)
        d_parameters = d_parameters._replace(pos_emb=p.Embedding(*embedding.backward(d_positions, saved.pos_emb)))
    if saved.wants_inputs or saved.tok_emb is not None:
        watch("d_tok_emb", d_embedded)
    if saved.tok_emb is not None:
        d_parameters = d_parameters._replace(tok_emb=p.Embedding(*embedding.backward(d_embedded, saved.tok_emb)))
    return Gradients(d_embedded if saved.wants_inputs else None, d_parameters)


def _looked_up(
    ids: Array, node: p.Embedding | p.Sinusoids, trained: Trained
) -> tuple[Array, embedding.Saved | None]:
    """The rows of the node's table, and what a backward needs if the table is trained."""
    (table,) = node
    rows, saved = embedding.forward(ids, table)
    return rows, saved if any_trained(node, trained) else None
