"""The GPT of "Build a Large Language Model (From Scratch)", chapter 4, as PyTorch modules: NumPy's twin.

The names of classes and attributes are the book's, so the state dict has the book's names in the book's order. The
modules are created in the book's order, so `torch.manual_seed(123); GPTModel(cfg)` holds the book's weights. The
letters are those of `numpygpt.shapes`: B batch, T tokens, D emb_dim, H heads, K head_dim, F = 4 D, V vocab_size.

The model differs from the book's listings in these things:

- the causal mask is made for the T tokens of the input, so the state dict holds only parameters; the buffers
  `att.mask` of the book's own `.pth` files are ignored;
- attention scores are scaled before they are masked, so that `attn_scores` is the same tensor as NumPy's;
- GELU's constant sqrt(2/pi) is float64 for a float64 input; the book's is always float32, which limits the accuracy;
- `attention="sdpa"` computes attention in PyTorch's fused kernel, and `tie_weights` shares the embedding with the head;
- `kernels="fused"` takes PyTorch's own kernels for layer norm and GELU, which read and write their operands once,
  where the written-out formulas make a tensor at each step;
- `checkpoint_activations` keeps only the input of each block, and computes the block again in the backward;
- `position="sinusoidal"` puts fixed sines and cosines in the place of learned positions;
- `activation`, `bias` and `norm_eps` choose GELU's form, whether there are biases and shifts, and the norms' eps;
- `positions` and `visible` say where a token stands and what it may see, for several texts in one row;
- every forward takes a watch, which is told each named activation (`numpygpt.watch`).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.watch import Watch, under, unwatched

ATTENTION_KINDS = ("math", "sdpa")
KERNEL_KINDS = ("book", "fused")


class LayerNorm(nn.Module):
    """Normalize the last axis to mean 0 and (biased) variance 1, then scale and shift (Ba et al. 2016).

    Without `bias` there is no shift. kernels="book" computes the formula as the book writes it; "fused" is
    `F.layer_norm`.
    """

    def __init__(self, emb_dim: int, eps: float = 1e-5, bias: bool = True, kernels: str = "book"):
        super().__init__()
        self.eps = eps
        self.kernels = kernels
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim)) if bias else None

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        if self.kernels == "fused":
            return F.layer_norm(x, x.shape[-1:], self.scale, self.shift, self.eps)
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        normalized = (x - mean) / torch.sqrt(variance + self.eps)
        scaled = self.scale * normalized
        return scaled if self.shift is None else scaled + self.shift


class SinusoidalPositions(nn.Module):
    """Sines and cosines in the place of a learned `nn.Embedding` of positions (Vaswani et al. 2017, section 3.5).

    Feature 2i of position t is sin(t / 10000^(2i / D)), and feature 2i + 1 is the cosine. They are neither a parameter
    nor a buffer: each forward computes them in float64, so that a model of any dtype gets them rounded once.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim

    def forward(self, positions: Integer[Tensor, "*rows"]) -> Float[Tensor, "*rows D"]:
        pairs = torch.arange(0, self.embedding_dim, 2, dtype=torch.float64, device=positions.device)
        angles = positions[..., None] * 10_000 ** (-pairs / self.embedding_dim)
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class GELU(nn.Module):
    """GELU's tanh form, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016).

    kernels="book" computes the formula as it stands here; "fused" is `F.gelu`.
    """

    def __init__(self, kernels: str = "book"):
        super().__init__()
        self.kernels = kernels

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self.kernels == "fused":
            return F.gelu(x, approximate="tanh")
        at_least_float32 = torch.promote_types(x.dtype, torch.float32)
        root = torch.sqrt(torch.tensor(2 / math.pi, dtype=at_least_float32))
        return 0.5 * x * (1 + torch.tanh(root * (x + 0.044715 * x**3)))


class GELUErf(nn.Module):
    """GELU's exact form, 0.5 x (1 + erf(x / sqrt(2))) (Hendrycks & Gimpel 2016). The kernels are those of `GELU`."""

    def __init__(self, kernels: str = "book"):
        super().__init__()
        self.kernels = kernels

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self.kernels == "fused":
            return F.gelu(x)
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


#: The module of each form of GELU.
ACTIVATIONS: dict[str, type[GELU | GELUErf]] = {"gelu_tanh": GELU, "gelu_erf": GELUErf}


class FeedForward(nn.Module):
    """Linear(D, F), GELU and Linear(F, D), applied to each position alone."""

    def __init__(self, cfg: GPTConfig, kernels: str = "book"):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg.emb_dim, 4 * cfg.emb_dim, bias=cfg.bias),
            ACTIVATIONS[cfg.activation](kernels),
            nn.Linear(4 * cfg.emb_dim, cfg.emb_dim, bias=cfg.bias),
        )

    def forward(self, x: Float[Tensor, "B T D"], watch: Watch = unwatched) -> Float[Tensor, "B T D"]:
        for index, layer in enumerate(self.layers):
            x = layer(x)
            watch(f"layers.{index}", x)
        return x


class MultiHeadAttention(nn.Module):
    """Causal self-attention in H heads (Vaswani et al. 2017, section 3.2).

    attention="math" computes the products as the book writes them. "sdpa" is `F.scaled_dot_product_attention`. Its
    kernel does not show the (B, H, T, T) tensors, so a watch is not told attn_scores, attn_weights and dropout.

    Where each process holds the rows of the projections that belong to some of the heads, H is the number of these.

    `visible` says which keys a query sees; None: itself and those before it. A query always sees itself.
    """

    def __init__(self, cfg: GPTConfig, attention: str = "math"):
        super().__init__()
        self.num_heads = cfg.n_heads
        self.head_dim = cfg.emb_dim // cfg.n_heads
        self.attention = attention
        self.W_query = nn.Linear(cfg.emb_dim, cfg.emb_dim, bias=cfg.qkv_bias)
        self.W_key = nn.Linear(cfg.emb_dim, cfg.emb_dim, bias=cfg.qkv_bias)
        self.W_value = nn.Linear(cfg.emb_dim, cfg.emb_dim, bias=cfg.qkv_bias)
        self.out_proj = nn.Linear(cfg.emb_dim, cfg.emb_dim, bias=cfg.bias)
        self.dropout = nn.Dropout(cfg.drop_rate)

    def forward(
        self, x: Float[Tensor, "B T D"], watch: Watch = unwatched, visible: Bool[Tensor, "B 1 T T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        if visible is not None:
            visible = visible | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)  # padding would see nothing
        queries = self._split_heads(self.W_query(x))
        keys = self._split_heads(self.W_key(x))
        values = self._split_heads(self.W_value(x))
        watch("queries", queries)
        watch("keys", keys)
        watch("values", values)
        if self.attention == "sdpa":
            context = self._attend_fused(queries, keys, values, visible)
        else:
            context = self._attend(queries, keys, values, watch, visible)
        context_vec = context.transpose(1, 2).flatten(2)  # heads merged
        watch("context_vec", context_vec)
        output = self.out_proj(context_vec)
        watch("out_proj", output)
        return output

    def _split_heads(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T K"]:
        return x.unflatten(2, (-1, self.head_dim)).transpose(1, 2)

    def _attend(
        self,
        queries: Float[Tensor, "B H T K"],
        keys: Float[Tensor, "B H T K"],
        values: Float[Tensor, "B H T K"],
        watch: Watch,
        visible: Bool[Tensor, "B 1 T T"] | None,
    ) -> Float[Tensor, "B H T K"]:
        n_tokens, head_dim = queries.shape[-2:]
        hidden = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=queries.device).triu(diagonal=1)
        if visible is not None:
            hidden = ~visible
        attn_scores = (queries @ keys.transpose(2, 3) / math.sqrt(head_dim)).masked_fill(hidden, -math.inf)
        watch("attn_scores", attn_scores)
        attn_weights = torch.softmax(attn_scores, dim=-1)
        watch("attn_weights", attn_weights)
        dropped_weights = self.dropout(attn_weights)
        watch("dropout", dropped_weights)
        return dropped_weights @ values

    def _attend_fused(
        self,
        queries: Float[Tensor, "B H T K"],
        keys: Float[Tensor, "B H T K"],
        values: Float[Tensor, "B H T K"],
        visible: Bool[Tensor, "B 1 T T"] | None,
    ) -> Float[Tensor, "B H T K"]:
        drop_rate = self.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=visible, is_causal=visible is None, dropout_p=drop_rate
        )


class TransformerBlock(nn.Module):
    """Attention and then feed-forward, each after a norm and with a shortcut around it (Radford et al. 2019).

    With `checkpoint_activations`, a forward keeps only its input, and the backward computes the block once more (Chen
    et al. 2016, arXiv:1604.06174). It draws the same dropout masks again, so the gradients have the same bits. A
    watched forward keeps what it computes, since a watch may keep what it is told, and is told each tensor once.
    """

    def __init__(
        self, cfg: GPTConfig, attention: str = "math", *, kernels: str = "book", checkpoint_activations: bool = False
    ):
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.att = MultiHeadAttention(cfg, attention)
        self.ff = FeedForward(cfg, kernels)
        self.norm1 = LayerNorm(cfg.emb_dim, cfg.norm_eps, cfg.bias, kernels)
        self.norm2 = LayerNorm(cfg.emb_dim, cfg.norm_eps, cfg.bias, kernels)
        self.drop_shortcut = nn.Dropout(cfg.drop_rate)

    def forward(
        self, x: Float[Tensor, "B T D"], watch: Watch = unwatched, visible: Bool[Tensor, "B 1 T T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        if self.checkpoint_activations and watch is unwatched and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(
                self._compute, x, watch, visible, use_reentrant=False, preserve_rng_state=True
            )
            return recomputed
        return self._compute(x, watch, visible)

    def _compute(
        self, x: Float[Tensor, "B T D"], watch: Watch, visible: Bool[Tensor, "B 1 T T"] | None
    ) -> Float[Tensor, "B T D"]:
        norm1 = self.norm1(x)
        watch("norm1", norm1)
        drop_att = self.drop_shortcut(self.att(norm1, under(watch, "att"), visible))
        watch("drop_att", drop_att)
        residual = x + drop_att
        watch("residual", residual)
        norm2 = self.norm2(residual)
        watch("norm2", norm2)
        drop_ff = self.drop_shortcut(self.ff(norm2, under(watch, "ff")))
        watch("drop_ff", drop_ff)
        return residual + drop_ff


class GPTModel(nn.Module):
    """The book's GPT: from token ids (B, T), with T <= context_length, to logits (B, T, V).

    cfg        a GPTConfig, or a dict with the book's seven keys (and, optionally, the others of GPTConfig)
    attention  "math": as the book writes it; "sdpa": PyTorch's fused kernel
    kernels    layer norm and GELU: "book": as the book writes them; "fused": PyTorch's kernels
    checkpoint_activations   whether the backward computes each block again, so that a forward keeps less

    With tie_weights, `tok_emb.weight` and `out_head.weight` are one Parameter. It starts with the values that are drawn
    for the head: with those of the embedding, N(0, 1), the first logits would be far too large. Both are drawn, so
    the generator ends in the same state, tied or not.

    Raises InputError for an unusable configuration, an unknown kind of attention or kernels, and too many tokens.
    """

    def __init__(
        self,
        cfg: GPTConfig | Mapping[str, Any],
        attention: str = "math",
        *,
        kernels: str = "book",
        checkpoint_activations: bool = False,
    ):
        super().__init__()
        if attention not in ATTENTION_KINDS:
            raise InputError(f"attention is {attention!r}; expected one of {ATTENTION_KINDS}")
        if kernels not in KERNEL_KINDS:
            raise InputError(f"kernels is {kernels!r}; expected one of {KERNEL_KINDS}")
        self.config = GPTConfig.of(cfg)
        self.tok_emb = nn.Embedding(self.config.vocab_size, self.config.emb_dim)
        self.pos_emb: nn.Embedding | SinusoidalPositions
        if self.config.position == "learned":
            self.pos_emb = nn.Embedding(self.config.context_length, self.config.emb_dim)
        else:
            self.pos_emb = SinusoidalPositions(self.config.context_length, self.config.emb_dim)
        self.drop_emb = nn.Dropout(self.config.drop_rate)
        self.trf_blocks = nn.Sequential(
            *(
                TransformerBlock(self.config, attention, kernels=kernels, checkpoint_activations=checkpoint_activations)
                for _ in range(self.config.n_layers)
            )
        )
        self.final_norm = LayerNorm(self.config.emb_dim, self.config.norm_eps, self.config.bias, kernels)
        self.out_head = nn.Linear(self.config.emb_dim, self.config.scores, bias=self.config.classes is not None)
        self._tie()

    def forward(self, in_idx: Integer[Tensor, "B T"], watch: Watch = unwatched) -> Float[Tensor, "B T V"]:
        """The logits; `watch(name, tensor)` is told each activation in order of computation."""
        logits = self.out_head(self.hidden(in_idx, watch))
        watch("logits", logits)
        return logits

    def hidden(self, in_idx: Integer[Tensor, "B T"], watch: Watch = unwatched) -> Float[Tensor, "B T D"]:
        """The hidden states, from which `out_head` makes the logits: everything before the head.

        A loss that is made of them by `torchgpt.head_loss` needs no logits of the whole batch.
        """
        x = self.embedded(in_idx, watch)
        for index, block in enumerate(self.trf_blocks):
            x = block(x, under(watch, f"trf_blocks.{index}"))
            watch(f"trf_blocks.{index}", x)
        x = self.final_norm(x)
        watch("final_norm", x)
        return x

    def embedded(
        self,
        in_idx: Integer[Tensor, "B T"],
        watch: Watch = unwatched,
        positions: Integer[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The input of the first block: the embeddings of tokens and positions, after dropout.

        positions   of the tokens; None: 0, 1, ... in each row
        """
        n_tokens = in_idx.shape[1]
        if n_tokens > self.config.context_length:
            raise InputError(
                f"the input has {n_tokens} tokens, more than context_length {self.config.context_length}: "
                f"crop it, for example to in_idx[:, -{self.config.context_length}:]"
            )
        tok_emb = self.tok_emb(in_idx)
        watch("tok_emb", tok_emb)
        if positions is None:
            positions = torch.arange(n_tokens, device=in_idx.device)
        pos_emb = self.pos_emb(positions).to(tok_emb.dtype)
        watch("pos_emb", pos_emb)
        x = self.drop_emb(tok_emb + pos_emb)
        watch("drop_emb", x)
        return x

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As `nn.Module.load_state_dict`, but the `trf_blocks.{i}.att.mask` of the book's files are ignored.

        A tied model also loads a state dict without `out_head.weight`, and stays tied with `assign=True`.

        Raises InputError if a tied model is given a head that differs from the embedding.
        """
        tensors = {name: tensor for name, tensor in state_dict.items() if not name.endswith(".att.mask")}
        if self.config.tie_weights and "tok_emb.weight" in tensors:
            embedding = tensors["tok_emb.weight"]
            if not torch.equal(tensors.setdefault("out_head.weight", embedding), embedding):
                raise InputError(
                    "out_head.weight differs from tok_emb.weight, but this model ties them: "
                    "load it into a model with tie_weights=False"
                )
        result = super().load_state_dict(tensors, strict, assign)
        self._tie()
        return result

    def _tie(self) -> None:
        """Make the embedding's Parameter the head's, if the configuration says so."""
        if self.config.tie_weights:
            self.tok_emb.weight = self.out_head.weight
