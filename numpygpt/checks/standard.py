"""The standard traces: a small ladder of tiny models, each with something that those below it do not have."""

from dataclasses import replace

from numpygpt.checks.trace import Settings
from numpygpt.model.config import GPTConfig

#: No two sizes are equal, so that a transposed tensor has another shape.
_ONE_HEAD = GPTConfig(
    vocab_size=13, context_length=9, emb_dim=6, n_heads=1, n_layers=1, drop_rate=0.0, qkv_bias=False
)
_HEADS = replace(_ONE_HEAD, emb_dim=12, n_heads=3)
_GPT2 = replace(_HEADS, n_layers=2, qkv_bias=True, tie_weights=True)

#: {name: (the configuration, the settings)}, from the simplest on.
STANDARD: dict[str, tuple[GPTConfig, Settings]] = {
    "1-one-head": (_ONE_HEAD, Settings(tokens=5)),
    "2-three-heads": (_HEADS, Settings(tokens=5)),
    "3-two-blocks": (replace(_HEADS, n_layers=2), Settings(tokens=7)),
    "4-gpt2": (_GPT2, Settings(tokens=7)),
    "5-dropout": (replace(_HEADS, n_layers=2, drop_rate=0.25), Settings(tokens=7)),
    "6-no-biases": (replace(_HEADS, bias=False, position="sinusoidal", norm_eps=0.1), Settings(tokens=7)),
    "7-exact-gelu": (replace(_HEADS, activation="gelu_erf"), Settings(tokens=7)),
}
