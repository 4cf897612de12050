"""The configuration of a GPT: the book's seven keys, and whether the output head is tied to the token embedding."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from numpygpt.errors import InputError

SIZES = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
SWITCHES = ("qkv_bias", "tie_weights")


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT, checked when it is made.

    vocab_size (V)       number of token ids
    context_length (C)   number of learned positions
    emb_dim (D)          width of the residual stream, divisible by n_heads
    n_heads (H)          attention heads in a block
    n_layers (L)         transformer blocks
    drop_rate            probability that dropout zeroes an element, in [0, 1)
    qkv_bias             whether queries, keys and values have a bias
    tie_weights          whether out_head.weight is tok_emb.weight, one array (Press & Wolf 2017, arXiv:1608.05859)

    Raises InputError for a size that is not a positive integer, an emb_dim that n_heads does not divide, a drop_rate outside
    [0, 1) or a switch that is not a bool.
    """

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int
    drop_rate: float
    qkv_bias: bool
    tie_weights: bool = False

    def __post_init__(self) -> None:
        for name in SIZES:
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
                raise InputError(f"{name} is {size!r}; expected a positive integer")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}; expected True or False")
        rate = self.drop_rate
        if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 <= rate < 1:
            raise InputError(f"drop_rate is {rate!r}; expected a number in [0, 1)")
        if self.emb_dim % self.n_heads:
            raise InputError(
                f"emb_dim {self.emb_dim} is not divisible by n_heads {self.n_heads}: "
                f"each head gets emb_dim / n_heads features; change one of the two"
            )

    @classmethod
    def of(cls, cfg: "GPTConfig | Mapping[str, Any]") -> "GPTConfig":
        """`cfg` itself, or the GPTConfig of a mapping with the book's seven keys (and, optionally, tie_weights)."""
        if isinstance(cfg, cls):
            return cfg
        if not isinstance(cfg, Mapping):
            raise InputError(f"the configuration is a {type(cfg).__name__}; expected a GPTConfig or a dict")
        known = [field.name for field in fields(cls)]
        missing = [name for name in known if name not in cfg and name != "tie_weights"]
        unexpected = [name for name in cfg if name not in known]
        if missing or unexpected:
            raise InputError(f"configuration keys: missing {missing}, unexpected {unexpected}; expected {known}")
        return cls(**cfg)

    @property
    def head_dim(self) -> int:
        """K, the features of one attention head."""
        return self.emb_dim // self.n_heads

    def to_dict(self) -> dict[str, Any]:
        """The configuration as a plain dict, for `GPTConfig.of` and for JSON."""
        return asdict(self)


GPT_CONFIG_124M: dict[str, Any] = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}

_SMALL = GPTConfig.of(GPT_CONFIG_124M)

#: The released GPT-2 family (Radford et al. 2019, table 2), with this project's untied head and no query-key-value bias.
GPT2_SIZES: dict[str, GPTConfig] = {
    "gpt2-small": _SMALL,
    "gpt2-medium": replace(_SMALL, emb_dim=1024, n_layers=24, n_heads=16),
    "gpt2-large": replace(_SMALL, emb_dim=1280, n_layers=36, n_heads=20),
    "gpt2-xl": replace(_SMALL, emb_dim=1600, n_layers=48, n_heads=25),
}
