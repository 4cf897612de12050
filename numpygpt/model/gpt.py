"""GPTModel: a body, a language head and the next token's loss behind PyTorch's face.

    in_idx   (B, T)      token ids, T <= C
    hidden   (B, T, D)   the body's output
    logits   (B, T, V)   scores of each next token

    (1)  hidden = body(in_idx)
    (2)  logits = hidden @ W_outᵀ
    (3)  loss = next_token(logits, targets)

With tied weights W_out is tok_emb itself, used twice, and its gradient is the sum of both uses.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.layers import parameters as p
from numpygpt.layers import projection
from numpygpt.layers.key_value_cache import KeyValueCache
from numpygpt.layers.projections import draw_masks_of_paths, with_masks
from numpygpt.model import body
from numpygpt.model.body import DropoutMasks
from numpygpt.model.config import ATTENTIONS, GPTConfig
from numpygpt.model.initialization import allocate, initialize
from numpygpt.numerics import casting
from numpygpt.numerics.autocast import Precision, precision_of
from numpygpt.objectives import next_token
from numpygpt.ops import gelu_erf
from numpygpt.random.masks import RandomSource
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array, Bool, Inexact, Integer
from numpygpt.tree import Trained, everything, named, nothing, nowhere, within
from numpygpt.watch import Watch, unwatched

DTYPES = (np.float32, np.float64, np.complex128)
Visible = Literal["causal", "all"] | Bool[Array, "B 1 T S"]


class Saved(NamedTuple):
    """What the backward needs of a forward, part by part; and the body's output, for a loss that uses it, too."""

    body: body.Saved
    out_head: Any
    hidden: Inexact[Array, "B T D"]


class GPTModel:
    """The book's GPT with PyTorch's parameter names, in NumPy.

    cfg     a GPTConfig, or a dict with the book's seven keys
    seed    an int, or a TorchGenerator to draw on from where it stands; the initial weights are those of
            `torch.manual_seed(seed); GPTModel(cfg)` in PyTorch
    dtype   float32 or float64 to compute in, or complex128 to differentiate by complex step
    attention               "math" computes attention's (B, H, T, T) tensors, as the book does; "flash" gives the same
                            values except for rounding, tile by tile, in memory that grows with T (except for
                            dropout's masks); it is faster at 1024 tokens, not at 256, and a watch is not told those
                            tensors
    checkpoint_activations  save each block's input alone and compute the block again in the backward: the same
                            gradients bit for bit, for less memory and a fifth more time

    precision   "fp32", or the format, "bf16" or "fp16", in which a step is computed as torch.autocast would: the
                arrays keep their dtype, and hold rounded values
    autocast    "cuda" or "cpu": by whose table torch.autocast chooses the operations that run in this format
                (`numpygpt.numerics.autocast`)

    The first two may be set later, as attributes. The attribute `precision` has the format of each operation. `frozen`
    has the names of the parameters that training leaves as they are. A new model has none (`numpygpt.adapt.freeze`).
    Raises InputError for an invalid configuration, seed, dtype, attention, precision or autocast, and for GELU's exact
    form if SciPy is not installed.
    """

    config: GPTConfig
    checkpoint_activations: bool
    precision: Precision
    parameters: p.GPT
    frozen: frozenset[str]

    def __init__(
        self,
        cfg: GPTConfig | Mapping[str, Any],
        seed: int | TorchGenerator = 123,
        dtype: Any = np.float32,
        *,
        attention: str = "math",
        checkpoint_activations: bool = False,
        precision: str = "fp32",
        autocast: str = "cuda",
    ) -> None:
        self._allocate(cfg, dtype, attention, checkpoint_activations, precision_of(precision, autocast))
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
        precision: str = "fp32",
        autocast: str = "cuda",
    ) -> "GPTModel":
        """A model with these weights, copied; nothing is drawn. `dtype` defaults to the weights' common dtype."""
        if dtype is None:
            weights = _without_masks(state_dict).values()
            dtype = np.result_type(*weights) if weights else np.float32
        model = cls.unfilled(
            cfg,
            dtype,
            attention=attention,
            checkpoint_activations=checkpoint_activations,
            precision=precision,
            autocast=autocast,
        )
        model.load_state_dict(state_dict)
        return model

    @classmethod
    def unfilled(
        cls,
        cfg: GPTConfig | Mapping[str, Any],
        dtype: Any = np.float32,
        *,
        attention: str = "math",
        checkpoint_activations: bool = False,
        precision: str = "fp32",
        autocast: str = "cuda",
    ) -> "GPTModel":
        """A model whose parameters have no values yet: whoever asks for it gives every one of them a value."""
        model = cls.__new__(cls)
        model._allocate(cfg, dtype, attention, checkpoint_activations, precision_of(precision, autocast))
        return model

    def _allocate(
        self,
        cfg: GPTConfig | Mapping[str, Any],
        dtype: Any,
        attention: str,
        checkpoint_activations: bool,
        precision: Precision,
    ) -> None:
        self.attention, self.checkpoint_activations, self.precision = attention, checkpoint_activations, precision
        self.config = GPTConfig.of(cfg)
        if self.config.activation == "gelu_erf":
            gelu_erf.error_function()  # raises InputError now, not at the first forward, if SciPy is missing
        if np.dtype(dtype) not in DTYPES:
            raise InputError(f"dtype is {np.dtype(dtype)}; expected float32, float64 or complex128")
        self.parameters, self.frozen = allocate(self.config, np.dtype(dtype)), frozenset()

    def with_parameters(
        self, parameters: p.GPT, *, frozen: Iterable[str] | None = None, **sizes: Any
    ) -> "GPTModel":
        """A model that computes in the same way with these parameters, whose arrays become its own.

        frozen   the names of those that training leaves as they are; None: this model's
        sizes    fields of the configuration that are others for these parameters: tie_weights, for example
        """
        model = copy(self)
        model.parameters = parameters
        if frozen is not None:
            model.frozen = frozenset(frozen)
        model.config = replace(self.config, **sizes)
        return model

    @property
    def attention(self) -> str:
        """"math" or "flash"."""
        return self._attention

    @attention.setter
    def attention(self, attention: str) -> None:
        if attention not in ATTENTIONS:
            raise InputError(f"attention is {attention!r}; expected {' or '.join(map(repr, ATTENTIONS))}")
        self._attention = attention

    # Parameters

    @property
    def dtype(self) -> np.dtype:
        """The parameters' dtype; the common one if they differ."""
        return np.result_type(*self.state_dict().values())

    def state_dict(self) -> dict[str, Array]:
        """{PyTorch name: array}, in PyTorch's order; the model's own arrays. Tied weights appear under both names."""
        return dict(named(self.parameters))

    def named_parameters(self) -> dict[str, Array]:
        """The state dict with each array once: without `out_head.weight` if it is tied to `tok_emb.weight`."""
        state_dict = self.state_dict()
        if self.config.tie_weights:
            del state_dict["out_head.weight"]
        return state_dict

    def num_parameters(self, *, trained_only: bool = False) -> int:
        """How many values the parameters have, or those that are not frozen; tied weights count once."""
        trained = self.trained if trained_only else everything
        return sum(array.size for name, array in self.named_parameters().items() if trained(name))

    @property
    def trained(self) -> Trained:
        """Whether the parameter of a name is trained: whether it is not frozen."""
        return partial(_is_not_in, self.frozen) if self.frozen else everything

    def load_state_dict(self, mapping: Mapping[str, Array]) -> None:
        """Copy every array of `mapping` into the parameter of that name, in the model's dtype.

        Strict: InputError lists the missing, unexpected and misshaped names, and then nothing is changed. The book's
        buffers `trf_blocks.{i}.att.mask` are accepted and ignored; with tied weights `out_head.weight` may be absent,
        and where present it must equal `tok_emb.weight`.
        """
        own = self.named_parameters()
        given = _without_masks(mapping)
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
        unwritable = [name for name, array in own.items() if not array.flags.writeable]
        uncastable = [
            f"{name} {given[name].dtype}, expected {array.dtype}"
            for name, array in own.items()
            if not np.can_cast(given[name].dtype, array.dtype, "same_kind")
        ]
        if unwritable or uncastable:
            raise InputError(
                f"the state dict cannot be copied into the model: of another kind of number: "
                f"{', '.join(uncastable) or 'none'}; read-only in the model: {', '.join(unwritable) or 'none'}"
            )
        for name, array in own.items():
            np.copyto(array, given[name], casting="same_kind")

    # Inference

    def __call__(self, in_idx: Any) -> Inexact[Array, "B T V"]:
        """Logits (B, T, V) for token ids (B, T), without dropout."""
        logits, _ = self.forward(in_idx, trained=nothing)
        return logits

    def decode(
        self,
        in_idx: Any,
        past: tuple[KeyValueCache, ...] | None = None,
        *,
        positions: Any = None,
        visible: Visible = "causal",
        watch: Watch = unwatched,
    ) -> tuple[Inexact[Array, "B V"], tuple[KeyValueCache, ...]]:
        """Logits of the last of these tokens, and the keys and values of all tokens so far.

        in_idx               (B, T) token ids that follow those of `past`
        past                 what an earlier call returned, a cache a block; it is not changed
        positions, visible   as `forward` takes them; S is the length of `past` and T together

        Raises InputError for token ids, a past and positions that do not fit the model or each other, and for a head
        that scores no tokens.
        """
        if self.config.classes is not None:
            raise InputError(f"the model's head scores {self.config.classes} classes and no tokens: it cannot write")
        in_idx = self._token_ids(in_idx, past)
        hidden, saved = self._body(
            in_idx,
            self.parameters.body,
            past=past or self._empty_caches(len(in_idx)),
            positions=positions,
            visible=visible,
            trained=nothing,
            watch=watch,
        )
        logits, _ = self._head(hidden[:, -1:], self.parameters.out_head, trained=nothing, watch=watch)
        return logits[:, 0], saved.present

    def _empty_caches(self, B: int) -> tuple[KeyValueCache, ...]:
        H, C, K = self.config.n_heads, self.config.context_length, self.config.head_dim
        return tuple(KeyValueCache.empty(B, H, C, K, self.dtype) for _ in range(self.config.n_layers))

    # Training

    def loss_and_grads(
        self,
        inputs: Any,
        targets: Any,
        *,
        positions: Any = None,
        visible: Visible = "causal",
        rng: RandomSource | None = None,
        trained: Trained | None = None,
        loss_scale: float = 1.0,
        watch: Watch = unwatched,
    ) -> tuple[Any, dict[str, Array]]:
        """The mean cross-entropy in nats, and the gradient of every trained parameter.

        inputs, targets      (B, T) token ids; targets of cross_entropy.IGNORE_INDEX (-100) do not count
        positions, visible   as `forward` takes them, for several texts in one row, for example
        rng                  draws the dropout masks (a TorchGenerator or numpy.random.Generator); None: no dropout
        trained              whether the parameter of a name is trained; None: whether it is not frozen
        loss_scale           what the gradients are multiplied by, from the first one on
        returns              the loss, and {PyTorch name: gradient} with the names of `named_parameters`

        Raises InputError for ids outside the vocabulary, a sequence longer than context_length, or unequal shapes.
        """
        trained = trained or self.trained
        inputs, targets = self._token_ids(inputs), np.asarray(targets)
        if targets.shape != inputs.shape or not np.issubdtype(targets.dtype, np.integer):
            raise InputError(
                f"targets are {targets.dtype} {targets.shape}; expected integers shaped as the inputs, {inputs.shape}"
            )
        masks = None if rng is None else self.draw_dropout_masks(rng, *inputs.shape)
        logits, saved = self.forward(  # (1), (2)
            inputs, positions=positions, visible=visible, masks=masks, trained=trained, watch=watch
        )
        loss, scored = casting.forward(next_token, self.precision.cross_entropy, logits, targets)  # (3)
        watch("loss", loss)
        in_place = watch is unwatched  # the logits are the largest array of the run: kept only for a watch
        d_loss = loss.dtype.type(loss_scale)
        d_logits = casting.backward(next_token, d_loss, scored, in_place=in_place).logits  # undoes (3)
        del logits, scored, masks
        return loss, self.backward(d_logits, saved, consume=True, watch=watch)

    def draw_dropout_masks(self, rng: RandomSource, B: int, T: int) -> DropoutMasks:
        """Masks for a batch (B, T), in the order in which PyTorch draws them during a forward.

        Those on paths of low rank come after all others, in the order of the projections.
        """
        config = self.config
        masks = body.draw_masks(rng, (B, T, config.emb_dim), config.n_heads, config.n_layers, config.drop_rate)
        return masks._replace(paths=draw_masks_of_paths(rng, self.parameters, B, T))

    def forward(
        self,
        in_idx: Any,
        *,
        positions: Any = None,
        visible: Visible = "causal",
        masks: DropoutMasks | None = None,
        trained: Trained | None = None,
        watch: Watch = unwatched,
    ) -> tuple[Inexact[Array, "B T V"], Saved]:
        """Logits and what `backward` needs.

        in_idx      (B, T) token ids
        positions   (B, T) of the tokens, each below context_length; None: 0, 1, ... in each sequence
        visible     which tokens a token may see: "causal", "all", or booleans (B, 1, T, T)
        masks       of dropout (`draw_dropout_masks`); None: no dropout
        trained     whether the parameter of a name is trained; None: whether it is not frozen. What no trained
                    parameter needs is not saved
        """
        trained = trained or self.trained
        parameters = self.parameters if masks is None else with_masks(self.parameters, masks.paths)
        hidden, saved = self._body(
            self._token_ids(in_idx),
            parameters.body,
            positions=positions,
            visible=visible,
            masks=masks,
            trained=trained,
            watch=watch,
        )
        logits, out_head = self._head(
            hidden, parameters.out_head, wants_x=saved.wanted, trained=trained, watch=watch
        )
        return logits, Saved(saved, out_head, hidden)

    def backward(
        self,
        d_logits: Inexact[Array, "B T V"],
        saved: Saved,
        *,
        d_hidden: Inexact[Array, "B T D"] | None = None,
        consume: bool = False,
        watch: Watch = unwatched,
    ) -> dict[str, Array]:
        """{PyTorch name: gradient} of the trained parameters, with the names of `named_parameters`.

        d_hidden  the gradient of `saved.hidden` by another way than through the logits; None: there is no other way
        consume   drop what a block saved as soon as it is used, so that gradients take the place of activations;
                  `saved` then serves for this one backward
        """
        watch("d_logits", d_logits)
        d_x, d_out_head = projection.backward(d_logits, saved.out_head)  # undoes (2)
        d_body = nowhere(saved.body.parameters)
        if d_x is not None:
            d_x = d_x if d_hidden is None else d_x + d_hidden
            _, d_body = body.backward(d_x, saved.body, consume=consume, watch=watch)  # undoes (1)
        gradients = dict(named(p.GPT._make((*d_body, d_out_head))))
        if self.config.tie_weights and "out_head.weight" in gradients:
            gradients["tok_emb.weight"] += gradients.pop("out_head.weight")
        return gradients

    def _body(
        self, in_idx: Array, parameters: p.Body, *, positions: Any, trained: Trained, **options: Any
    ) -> tuple[Array, body.Saved]:
        """The composition, (1), with this model's way of computing."""
        return body.forward(
            in_idx,
            parameters,
            n_heads=self.config.n_heads,
            drop_rate=self.config.drop_rate,
            flash=self.attention == "flash" and in_idx.shape[1] > 1,  # one query has nothing to be tiled
            activation=self.config.activation,
            norm_eps=self.config.norm_eps,
            recompute=self.checkpoint_activations,
            precision=self.precision,
            positions=None if positions is None else self._positions(positions, in_idx.shape),
            trained=trained,
            **options,
        )

    def _head(
        self, hidden: Array, parameters: Any, *, wants_x: bool = False, trained: Trained, watch: Watch
    ) -> tuple[Array, Any]:
        """(2). A weight that is tied to the embedding is trained with it."""
        if self.config.tie_weights and trained not in (everything, nothing):
            trained = partial(_trained_with_the_embedding, trained)
        logits, saved = projection.forward(
            hidden, parameters, precision=self.precision, wants_x=wants_x, trained=within(trained, "out_head")
        )
        watch("logits", logits)
        return logits, saved

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

    def _positions(self, positions: Any, shape: tuple[int, ...]) -> Integer[Array, "B T"]:
        """The positions as an array.

        One row for several sequences is refused: the forward would repeat it, and the backward would take the gradient
        of the first sequence for that of all.
        """
        positions = np.asarray(positions)
        if positions.shape != shape or not np.issubdtype(positions.dtype, np.integer):
            raise InputError(
                f"positions are {positions.dtype} {positions.shape}; expected integers shaped as the token ids, {shape}"
            )
        outside = positions[(positions < 0) | (positions >= self.config.context_length)]
        if outside.size:
            raise InputError(
                f"position {outside[0]} is outside of context_length {self.config.context_length}; "
                f"expected from 0 to {self.config.context_length - 1}"
            )
        return positions


def _is_not_in(names: Collection[str], name: str) -> bool:
    return name not in names


def _trained_with_the_embedding(trained: Trained, name: str) -> bool:
    """Whether a leaf is trained if the head's weight is the embedding's."""
    return trained("tok_emb.weight" if name == "out_head.weight" else name)


def _without_masks(mapping: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays of a state dict, except the buffers that the book's model has in each block."""
    return {name: np.asarray(array) for name, array in mapping.items() if not name.endswith(".att.mask")}
