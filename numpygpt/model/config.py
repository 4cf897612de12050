"""The configuration of a GPT: the book's seven keys, whether the output head is tied, and the kind of positions."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from numpygpt.errors import InputError

SIZES = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
#: No size is larger, so that the bytes of a model can be computed and told. No machine holds a model near it.
LARGEST_SIZE = 2**31 - 1
SWITCHES = ("qkv_bias", "tie_weights")
#: How attention is computed: see `GPTModel`.
ATTENTIONS = ("math", "flash")
POSITIONS = ("learned", "sinusoidal")


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT, checked when it is made.

    vocab_size (V)       number of token ids
    context_length (C)   number of positions: the longest sequence
    emb_dim (D)          width of the residual stream, divisible by n_heads
    n_heads (H)          attention heads in a block
    n_layers (L)         transformer blocks
    drop_rate            probability that dropout zeroes an element, in [0, 1)
    qkv_bias             whether queries, keys and values have a bias
    tie_weights          whether out_head.weight is tok_emb.weight, one array (Press & Wolf 2017, arXiv:1608.05859)
    position             "learned": an embedding of each position, as in GPT-2; "sinusoidal": fixed sines and cosines
                         (numpygpt.ops.sinusoidal_positions), which need an even emb_dim

    Raises InputError for a size that is not an integer from 1 to LARGEST_SIZE, an emb_dim that n_heads does not divide,
    a drop_rate outside [0, 1), a switch that is not a bool, an unknown position, or sinusoidal ones of an odd emb_dim.
    """

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int
    drop_rate: float
    qkv_bias: bool
    tie_weights: bool = False
    position: str = "learned"

    def __post_init__(self) -> None:
        for name in SIZES:
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
                raise InputError(f"{name} is {size!r}; expected a positive integer")
            if int(size) > LARGEST_SIZE:
                raise InputError(f"{name} is {size}; expected at most {LARGEST_SIZE}")
            object.__setattr__(self, name, int(size))  # a NumPy integer cannot be written as JSON
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}; expected True or False")
        rate = self.drop_rate
        if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 <= rate < 1:
            raise InputError(f"drop_rate is {rate!r}; expected a number in [0, 1)")
        object.__setattr__(self, "drop_rate", float(rate))  # a NumPy float64 would widen float32 arithmetic
        if self.emb_dim % self.n_heads:
            raise InputError(
                f"emb_dim {self.emb_dim} is not divisible by n_heads {self.n_heads}: "
                f"each head gets emb_dim / n_heads features; change one of the two"
            )
        if self.position not in POSITIONS:
            raise InputError(f"position is {self.position!r}; expected one of: {', '.join(POSITIONS)}")
        if self.position == "sinusoidal" and self.emb_dim % 2:
            raise InputError(
                f"emb_dim {self.emb_dim} is odd; sinusoidal positions pair a sine with a cosine: "
                f"make it even, or position \"learned\""
            )

    @classmethod
    def of(cls, cfg: "GPTConfig | Mapping[str, Any]") -> "GPTConfig":
        """`cfg` itself, or the GPTConfig of a mapping with the book's seven keys (and, optionally, the others)."""
        if isinstance(cfg, cls):
            return cfg
        if not isinstance(cfg, Mapping):
            raise InputError(f"the configuration is a {type(cfg).__name__}; expected a GPTConfig or a dict")
        known = [field.name for field in fields(cls)]
        required = [field.name for field in fields(cls) if field.default is MISSING]
        missing = [name for name in required if name not in cfg]
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

#: The released GPT-2 family (Radford et al. 2019, table 2), with this project's untied head and no bias in queries,
#: keys and values.
GPT2_SIZES: dict[str, GPTConfig] = {
    "gpt2-small": _SMALL,
    "gpt2-medium": replace(_SMALL, emb_dim=1024, n_layers=24, n_heads=16),
    "gpt2-large": replace(_SMALL, emb_dim=1280, n_layers=36, n_heads=20),
    "gpt2-xl": replace(_SMALL, emb_dim=1600, n_layers=48, n_heads=25),
}

#: The default model of the commands: small enough to learn English in a minute on two cores.
DEFAULT_CONFIG = GPTConfig(
    vocab_size=256, context_length=64, emb_dim=128, n_heads=4, n_layers=4, drop_rate=0.0, qkv_bias=False
)
