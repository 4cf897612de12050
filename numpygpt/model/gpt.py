"""GPTModel: the whole model, from token ids to logits and back to the gradient of every parameter.

    in_idx   (B, T)      token ids, T <= C
    x        (B, T, D)   the residual stream
    logits   (B, T, V)   scores of each next token

    (1)  x = dropout(tok_emb[in_idx] + pos_emb[0 .. T-1])
    (2)  x = block(x), for each transformer block
    (3)  z = final_norm(x)
    (4)  logits = z W_outᵀ

The sum in (1) gives its gradient to both terms; pos_emb is shared by the sequences of a batch, so its gradient is their
sum. Sinusoidal positions are constants and have no gradient.
With tied weights W_out is tok_emb itself, used twice, and its gradient is the sum of both uses.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.layers import parameters as p
from numpygpt.layers import recomputed_block, transformer_block
from numpygpt.layers.key_value_cache import KeyValueCache
from numpygpt.model.config import ATTENTIONS, GPTConfig
from numpygpt.model.initialization import allocate, initialize
from numpygpt.ops import cross_entropy, dropout, embedding, layer_norm, linear, sinusoidal_positions
from numpygpt.random.masks import RandomSource, draw_keep_mask
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array, Bool, Inexact, Integer
from numpygpt.tree import named
from numpygpt.watch import Watch, under, unwatched

DTYPES = (np.float32, np.float64, np.complex128)


class DropoutMasks(NamedTuple):
    """Which elements stay at every dropout site of the model."""

    embedding: Bool[Array, "B T D"] | None
    blocks: tuple[transformer_block.DropoutMasks, ...]


class Saved(NamedTuple):
    """What the backward needs of a forward, part by part."""

    tok_emb: embedding.Saved
    pos_emb: embedding.Saved
    drop_emb: dropout.Saved
    trf_blocks: list[transformer_block.Saved | recomputed_block.Saved]
    final_norm: layer_norm.Saved
    out_head: linear.Saved


class GPTModel:
    """The book's GPT with PyTorch's parameter names, in NumPy.

    cfg     a GPTConfig, or a dict with the book's seven keys
    seed    an int, or a TorchGenerator to draw on from where it stands; the initial weights are those of
            `torch.manual_seed(seed); GPTModel(cfg)` in PyTorch
    dtype   float32 or float64 to compute in, or complex128 to differentiate by complex step
    attention               "math" computes attention's (B, H, T, T) tensors, as the book does; "flash" gives the same
                            numbers but for rounding, tile by tile, in memory that grows with T (but for dropout's
                            masks): faster at 1024 tokens, not at 256; and a watch is not told those tensors
    checkpoint_activations  save each block's input alone and compute the block again in the backward: the same
                            gradients bit for bit, for less memory and a fifth more time

    Both may be set later, as attributes. Raises InputError for an invalid configuration, seed, dtype or attention.
    """

    config: GPTConfig
    dtype: np.dtype
    checkpoint_activations: bool
    parameters: p.GPT

    def __init__(
        self,
        cfg: GPTConfig | Mapping[str, Any],
        seed: int | TorchGenerator = 123,
        dtype: Any = np.float32,
        *,
        attention: str = "math",
        checkpoint_activations: bool = False,
    ) -> None:
        self._allocate(cfg, dtype, attention, checkpoint_activations)
        initialize(self.parameters, seed if isinstance(seed, TorchGenerator) else TorchGenerator(seed))

    @classmethod
    def from_state_dict(
        cls,
        cfg: GPTConfig | Mapping[str, Any],
        state_dict: Mapping[str, Array],
        dtype: Any = None,
        *,
        attention: str = "math",
        checkpoint_activations: bool = False,
    ) -> "GPTModel":
        """A model with these weights, copied; nothing is drawn. `dtype` defaults to the weights' own."""
        model = cls.__new__(cls)
        if dtype is None:
            dtype = next((array.dtype for array in state_dict.values()), np.float32)
        model._allocate(cfg, dtype, attention, checkpoint_activations)
        model.load_state_dict(state_dict)
        return model

    def _allocate(
        self, cfg: GPTConfig | Mapping[str, Any], dtype: Any, attention: str, checkpoint_activations: bool
    ) -> None:
        self.attention, self.checkpoint_activations = attention, checkpoint_activations
        self.config = GPTConfig.of(cfg)
        self.dtype = np.dtype(dtype)
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is {self.dtype}; expected float32, float64 or complex128")
        self.parameters = allocate(self.config, self.dtype)
        if self.config.position == "sinusoidal":
            self._sinusoids = sinusoidal_positions.table(self.config.context_length, self.config.emb_dim, self.dtype)

    @property
    def attention(self) -> str:
        """"math" or "flash"."""
        return self._attention

    @attention.setter
    def attention(self, attention: str) -> None:
        if attention not in ATTENTIONS:
            raise InputError(f"attention is {attention!r}; expected {' or '.join(map(repr, ATTENTIONS))}")
        self._attention = attention

    @property
    def _pos_emb(self) -> p.Embedding:
        """The table of positions (C, D): learned, or fixed."""
        return self.parameters.pos_emb or p.Embedding(self._sinusoids)

    # Parameters

    def state_dict(self) -> dict[str, Array]:
        """{PyTorch name: array}, in PyTorch's order; the model's own arrays. Tied weights appear under both names."""
        return dict(named(self.parameters))

    def named_parameters(self) -> dict[str, Array]:
        """The state dict with each array once: without `out_head.weight` where it is tied to `tok_emb.weight`."""
        state_dict = self.state_dict()
        if self.config.tie_weights:
            del state_dict["out_head.weight"]
        return state_dict

    def num_parameters(self) -> int:
        """How many numbers are trained; tied weights count once."""
        return sum(array.size for array in self.named_parameters().values())

    def load_state_dict(self, mapping: Mapping[str, Array]) -> None:
        """Copy every array of `mapping` into the parameter of that name, in the model's dtype.

        Strict: InputError lists the missing, unexpected and misshaped names, and then nothing is changed. The book's
        buffers `trf_blocks.{i}.att.mask` are accepted and ignored; with tied weights `out_head.weight` may be absent,
        and where present it must equal `tok_emb.weight`.
        """
        own = self.named_parameters()
        given = {name: np.asarray(array) for name, array in mapping.items() if not name.endswith(".att.mask")}
        if self.config.tie_weights and "tok_emb.weight" in given:
            head = given.pop("out_head.weight", given["tok_emb.weight"])
            if not np.array_equal(head, given["tok_emb.weight"]):
                raise InputError(
                    "out_head.weight differs from tok_emb.weight, but the configuration ties them: "
                    "set tie_weights=False"
                )
        misshaped = [
            f"{name} {given[name].shape}, expected {array.shape}"
            for name, array in own.items()
            if name in given and given[name].shape != array.shape
        ]
        faults = {
            "missing": [name for name in own if name not in given],
            "unexpected": [name for name in given if name not in own],
            "misshaped": misshaped,
        }
        if any(faults.values()):
            listed = "; ".join(f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names)
            raise InputError(f"the state dict does not fit the model: {listed}")
        for name, array in own.items():
            np.copyto(array, given[name], casting="same_kind")

    # Inference

    def __call__(self, in_idx: Any) -> Inexact[Array, "B T V"]:
        """Logits (B, T, V) for token ids (B, T), without dropout."""
        x, _ = self._without_saving(self._token_ids(in_idx), past=(None,) * self.config.n_layers)
        return self._head(x)

    def decode(
        self, in_idx: Any, past: tuple[KeyValueCache, ...] | None = None
    ) -> tuple[Inexact[Array, "B V"], tuple[KeyValueCache, ...]]:
        """Logits of the last of these tokens, and the keys and values of all tokens so far.

        in_idx   (B, T) token ids that follow those of `past`
        past     what an earlier call returned, a cache a block; it is not changed
        """
        in_idx = self._token_ids(in_idx, past)
        x, present = self._without_saving(in_idx, past or self._empty_caches(len(in_idx)))
        return self._head(x[:, -1:])[:, 0], tuple(cache for cache in present if cache)

    def _empty_caches(self, B: int) -> tuple[KeyValueCache, ...]:
        H, C, K = self.config.n_heads, self.config.context_length, self.config.emb_dim // self.config.n_heads
        return tuple(KeyValueCache.empty(B, H, C, K, self.dtype) for _ in range(self.config.n_layers))

    def _without_saving(
        self, in_idx: Array, past: Sequence[KeyValueCache | None]
    ) -> tuple[Array, list[KeyValueCache | None]]:
        """The residual stream after the last block, and each block's cache, where there is one, with these tokens."""
        parameters = self.parameters
        start = past[0].length if past[0] else 0
        tokens, _ = embedding.forward(in_idx, *parameters.tok_emb)
        x = tokens + self._pos_emb.weight[start : start + in_idx.shape[1]]
        present = []
        for block, cache in zip(parameters.trf_blocks, past, strict=True):
            flash = self.attention == "flash" and in_idx.shape[1] > 1  # one query has nothing to be tiled
            x, saved = transformer_block.forward(x, block, n_heads=self.config.n_heads, past=cache, flash=flash)
            present.append(saved.att.present)
        return x, present

    def _head(self, x: Inexact[Array, "B T D"]) -> Inexact[Array, "B T V"]:
        normed, _ = layer_norm.forward(x, *self.parameters.final_norm)
        return linear.forward(normed, *self.parameters.out_head)[0]

    # Training

    def loss_and_grads(
        self, inputs: Any, targets: Any, *, rng: RandomSource | None = None, watch: Watch = unwatched
    ) -> tuple[Any, dict[str, Array]]:
        """The mean cross-entropy in nats, and the gradient of every parameter.

        inputs, targets   (B, T) token ids; targets of cross_entropy.IGNORE_INDEX (-100) do not count
        rng               draws the dropout masks (a TorchGenerator or numpy.random.Generator); None: no dropout
        returns           the loss, and {PyTorch name: gradient} with the names of `named_parameters`

        Raises InputError for ids outside the vocabulary, a sequence longer than context_length, or unequal shapes.
        """
        inputs, targets = self._token_ids(inputs), np.asarray(targets)
        if targets.shape != inputs.shape or not np.issubdtype(targets.dtype, np.integer):
            raise InputError(
                f"targets are {targets.dtype} {targets.shape}; expected integers shaped as the inputs, {inputs.shape}"
            )
        masks = None if rng is None else self.draw_dropout_masks(rng, *inputs.shape)
        logits, saved = self.forward(inputs, masks=masks, watch=watch)
        loss, scored = cross_entropy.forward(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        watch("loss", loss)
        out = scored.logits if watch is unwatched else None  # the largest array of the run: kept only for a watch
        d_logits = cross_entropy.backward(loss.dtype.type(1), scored, out=out).logits.reshape(logits.shape)
        del logits, scored, out, masks
        return loss, self.backward(d_logits, saved, consume=True, watch=watch)

    def draw_dropout_masks(self, rng: RandomSource, B: int, T: int) -> DropoutMasks:
        """Masks for a batch (B, T), in the order in which PyTorch draws them during a forward."""
        config = self.config
        shape = (B, T, config.emb_dim)
        return DropoutMasks(
            draw_keep_mask(rng, shape, config.drop_rate),
            tuple(
                transformer_block.draw_masks(rng, shape, config.n_heads, config.drop_rate)
                for _ in range(config.n_layers)
            ),
        )

    def forward(
        self, in_idx: Any, *, masks: DropoutMasks | None = None, watch: Watch = unwatched
    ) -> tuple[Inexact[Array, "B T V"], Saved]:
        """Logits and what `backward` needs; without masks there is no dropout."""
        in_idx = self._token_ids(in_idx)
        parameters, config = self.parameters, self.config
        if masks is None:
            masks = DropoutMasks(None, (transformer_block.NO_MASKS,) * config.n_layers)
        tokens, tok_emb = embedding.forward(in_idx, *parameters.tok_emb)
        watch("tok_emb", tokens)
        positions, pos_emb = embedding.forward(np.arange(in_idx.shape[1]), *self._pos_emb)
        watch("pos_emb", positions)
        x, drop_emb = dropout.forward(tokens + positions, masks.embedding, drop_rate=config.drop_rate)  # (1)
        watch("drop_emb", x)
        layer = recomputed_block if self.checkpoint_activations else transformer_block
        saved_blocks: list[transformer_block.Saved | recomputed_block.Saved] = []
        for i, (block, block_masks) in enumerate(zip(parameters.trf_blocks, masks.blocks, strict=True)):
            x, saved = layer.forward(  # (2)
                x,
                block,
                n_heads=config.n_heads,
                masks=block_masks,
                drop_rate=config.drop_rate,
                flash=self.attention == "flash",
                watch=under(watch, f"trf_blocks.{i}"),
            )
            watch(f"trf_blocks.{i}", x)
            saved_blocks.append(saved)
        normed, final_norm = layer_norm.forward(x, *parameters.final_norm)  # (3)
        watch("final_norm", normed)
        logits, out_head = linear.forward(normed, *parameters.out_head)  # (4)
        watch("logits", logits)
        return logits, Saved(tok_emb, pos_emb, drop_emb, saved_blocks, final_norm, out_head)

    def backward(
        self, d_logits: Inexact[Array, "B T V"], saved: Saved, *, consume: bool = False, watch: Watch = unwatched
    ) -> dict[str, Array]:
        """{PyTorch name: gradient}, with the names of `named_parameters`.

        consume   drop what a block saved as soon as it is used, so that gradients take the place of activations;
                  `saved` then serves for this one backward
        """
        watch("d_logits", d_logits)
        d_normed, d_out_head, _ = linear.backward(d_logits, saved.out_head)  # undoes (4)
        watch("d_final_norm", d_normed)
        d_x, *d_final_norm = layer_norm.backward(d_normed, saved.final_norm)  # undoes (3)
        d_blocks: list[p.TransformerBlock] = []
        for i in reversed(range(self.config.n_layers)):
            watch(f"d_trf_blocks.{i}", d_x)
            saved_block = saved.trf_blocks.pop() if consume else saved.trf_blocks[i]
            layer = recomputed_block if isinstance(saved_block, recomputed_block.Saved) else transformer_block
            d_x, d_block = layer.backward(d_x, saved_block, watch=under(watch, f"trf_blocks.{i}"))  # undoes (2)
            del saved_block
            d_blocks.insert(0, d_block)
        watch("d_drop_emb", d_x)
        d_embedded = dropout.backward(d_x, saved.drop_emb).x  # undoes (1)
        d_pos_emb: p.Embedding | tuple[()] = ()
        if self.config.position == "learned":
            d_positions = d_embedded.sum(axis=0)
            watch("d_pos_emb", d_positions)
            d_pos_emb = p.Embedding(*embedding.backward(d_positions, saved.pos_emb))
        watch("d_tok_emb", d_embedded)
        d_tok_emb = embedding.backward(d_embedded, saved.tok_emb)
        tree = p.GPT(
            p.Embedding(*d_tok_emb),
            d_pos_emb,
            tuple(d_blocks),
            p.LayerNorm(*d_final_norm),
            p.Linear(d_out_head),
        )
        gradients = dict(named(tree))
        if self.config.tie_weights:
            gradients["tok_emb.weight"] += gradients.pop("out_head.weight")
        return gradients

    def _token_ids(
        self, in_idx: Any, past: Sequence[KeyValueCache] | None = None
    ) -> Integer[Array, "B T"]:
        in_idx = np.asarray(in_idx)
        if in_idx.ndim != 2 or not np.issubdtype(in_idx.dtype, np.integer) or not in_idx.size:
            raise InputError(
                f"token ids are {in_idx.dtype} {in_idx.shape}; "
                f"expected integers of shape (batch, tokens), at least one of each"
            )
        if past and (len(past), past[0].batch_size) != (self.config.n_layers, len(in_idx)):
            raise InputError(
                f"past is of {len(past)} blocks and {past[0].batch_size} sequences; expected "
                f"{self.config.n_layers} and {len(in_idx)}, those of the model and of the token ids"
            )
        end = in_idx.shape[1] + (past[0].length if past else 0)
        if end > self.config.context_length:
            raise InputError(
                f"a sequence of {end} tokens is longer than context_length {self.config.context_length}: "
                f"give the model the last {self.config.context_length} tokens, or make it with a longer context"
            )
        return in_idx
