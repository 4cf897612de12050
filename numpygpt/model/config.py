"""The configuration of a GPT: the book's seven keys, and six more for its relatives; the released models by name."""

import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from numpygpt.errors import InputError

SIZES = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
#: No size is larger, so that the bytes of a model can be computed and told. No machine holds a model near it.
LARGEST_SIZE = 2**31 - 1
SWITCHES = ("qkv_bias", "tie_weights", "bias")
#: How attention is computed: see `GPTModel`.
ATTENTIONS = ("math", "flash")
POSITIONS = ("learned", "sinusoidal")
ACTIVATIONS = ("gelu_tanh", "gelu_erf")
#: The fields that hold a word, and the words that each may be.
CHOICES = {"position": POSITIONS, "activation": ACTIVATIONS}


def means(meaning: str) -> dict[str, str]:
    """The metadata of a field of `GPTConfig`: its meaning in one line, for the commands' help."""
    return {"meaning": meaning}


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
    activation           inside the feed-forward network: "gelu_tanh", GPT-2's form of GELU; or "gelu_erf", its exact
                         form (numpygpt.ops.gelu_erf), which needs SciPy to compute
    bias                 whether the other linear layers of a block have a bias, and the norms a shift; the output head
                         has none in any case
    norm_eps             what a norm adds to the variance under its root
    classes              None: the head scores tokens; or how many classes it scores in their place, with a bias and
                         never tied (`numpygpt.adapt.head`)

    Raises InputError for a size that is not an integer from 1 to LARGEST_SIZE, an emb_dim that n_heads does not divide,
    a drop_rate outside [0, 1), a switch that is not a bool, an unknown position or activation, sinusoidal positions of
    an odd emb_dim, a norm_eps that is not a positive finite number, or classes with tied weights.
    """

    vocab_size: int = field(metadata=means("number of token ids"))
    context_length: int = field(metadata=means("longest sequence, in tokens"))
    emb_dim: int = field(metadata=means("width of the residual stream, divisible by the heads"))
    n_heads: int = field(metadata=means("attention heads in a block"))
    n_layers: int = field(metadata=means("transformer blocks"))
    drop_rate: float = field(metadata=means("probability that dropout zeroes an element"))
    qkv_bias: bool = field(metadata=means("a bias for queries, keys and values"))
    tie_weights: bool = field(default=False, metadata=means("one array for the token embedding and the output head"))
    position: str = field(default="learned", metadata=means("an embedding of each position, or fixed sinusoids"))
    activation: str = field(default="gelu_tanh", metadata=means("GPT-2's form of GELU, or the exact one, by SciPy"))
    bias: bool = field(default=True, metadata=means("a bias for the other linear layers, a shift for the norms"))
    norm_eps: float = field(default=1e-5, metadata=means("what a norm adds to the variance under its root"))
    classes: int | None = None

    def __post_init__(self) -> None:
        for name in SIZES:
            object.__setattr__(self, name, _size(name, getattr(self, name)))
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}; expected True or False")
        for name, words in CHOICES.items():
            if getattr(self, name) not in words:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of: {', '.join(words)}")
        if not _is_number(self.drop_rate) or not 0 <= self.drop_rate < 1:
            raise InputError(f"drop_rate is {self.drop_rate!r}; expected a number in [0, 1)")
        if not _is_number(self.norm_eps) or not 0 < self.norm_eps <= sys.float_info.max:
            raise InputError(f"norm_eps is {self.norm_eps!r}; expected a positive finite number, such as 1e-5")
        # a NumPy float64 would widen float32 arithmetic
        object.__setattr__(self, "drop_rate", float(self.drop_rate))
        object.__setattr__(self, "norm_eps", float(self.norm_eps))
        self._check_classes()
        if self.emb_dim % self.n_heads:
            raise InputError(
                f"emb_dim {self.emb_dim} is not divisible by n_heads {self.n_heads}: "
                f"each head gets emb_dim / n_heads features; change one of the two"
            )
        if self.position == "sinusoidal" and self.emb_dim % 2:
            raise InputError(
                f"emb_dim {self.emb_dim} is odd; sinusoidal positions pair a sine with a cosine: "
                f"make it even, or position \"learned\""
            )

    def _check_classes(self) -> None:
        if self.classes is None:
            return
        object.__setattr__(self, "classes", _size("classes", self.classes))
        if self.tie_weights:
            raise InputError(f"a head of {self.classes} classes cannot be tied to the token embedding")

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

    @property
    def scores(self) -> int:
        """How many scores the head gives at each position: one of each token, or of each class."""
        return self.vocab_size if self.classes is None else self.classes

    def to_dict(self) -> dict[str, Any]:
        """The configuration as a plain dict, for `GPTConfig.of` and for JSON."""
        return asdict(self)


def _size(name: str, size: Any) -> int:
    """The size of that name, as Python's integer: a NumPy integer cannot be written as JSON."""
    if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
        raise InputError(f"{name} is {size!r}; expected a positive integer")
    if int(size) > LARGEST_SIZE:
        raise InputError(f"{name} is {size}; expected at most {LARGEST_SIZE}")
    return int(size)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


GPT_CONFIG_124M: dict[str, Any] = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}

_BOOK_124M = GPTConfig.of(GPT_CONFIG_124M)
_BOOK = {
    "book-124M": _BOOK_124M,
    "book-355M": replace(_BOOK_124M, emb_dim=1024, n_layers=24, n_heads=16),
    "book-774M": replace(_BOOK_124M, emb_dim=1280, n_layers=36, n_heads=20),
    "book-1558M": replace(_BOOK_124M, emb_dim=1600, n_layers=48, n_heads=25),
}

#: The models that have a name.
#:
#: gpt2 to gpt2-xl are GPT-2 as it was released (Radford et al. 2019, table 2): the head is tied to the embedding, and
#: queries, keys and values have biases. book-124M to book-1558M are what the book makes of the same sizes to train
#: them: a head of its own, and no such biases. Each is named by the size of the released model that it follows; of its
#: own parameters there are more, 163,009,536 in the first.
PRESETS: dict[str, GPTConfig] = {
    name: replace(book, qkv_bias=True, tie_weights=True)
    for name, book in zip(("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"), _BOOK.values(), strict=True)
} | _BOOK

#: The default model of the commands: small enough to learn English in a minute on two cores.
DEFAULT_CONFIG = GPTConfig(
    vocab_size=256, context_length=64, emb_dim=128, n_heads=4, n_layers=4, drop_rate=0.0, qkv_bias=False
)
