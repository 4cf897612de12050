"""A trace: every tensor of a few training steps, by name, in the order in which they are computed.

`record` takes the steps and keeps the tensors. `docs/trace-format.md` lists the names, and `numpygpt.checks.trace_file`
writes them to a file. All that is computed follows from what is *given*: the configuration, the weights, the token ids,
the dropout masks and the settings of AdamW. So another implementation can compute the same trace and be compared.

`retrace` is the one list of calls behind this. It tells each tensor as soon as it is computed, and whoever is told may
write other values into the array before it is used further. In this way

    a reference        keeps what it is told,
    a candidate        rounds what it is told to a short format, or has a bug planted meanwhile,
    a local check      compares what it is told with another implementation's tensor and then puts that tensor in its
                       place, so that each tensor is computed from the other's own inputs.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.layers import transformer_block
from numpygpt.model.body import DropoutMasks
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.objectives import next_token
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array
from numpygpt.training.adamw import AdamW
from numpygpt.watch import Watch

Tensors = dict[str, Array]

DTYPES = ("float64", "float32")
INPUTS, TARGETS = "inputs", "targets"
#: In front of the name of the dropout whose mask it is: the mask is True where an element stays.
KEEP = "keep."
PROMPT, LOGITS, TOKENS = "generated.prompt", "generated.logits", "generated.tokens"
#: Every weight of a trace is a multiple of 2**-FINEST and has at most SIGNIFICANT significant bits, so that float32,
#: bfloat16 and float16 hold it without rounding.
SIGNIFICANT, FINEST = 8, 24


class Settings(NamedTuple):
    """What a trace is made with, besides the configuration of its model.

    seed                             of weights, token ids and dropout masks
    batch_size, tokens               B and T of each step; all steps take the same batch and the same masks
    steps                            K, the steps of AdamW
    dtype                            "float64" or "float32", in which it is computed
    new_tokens                       how many tokens are generated from the first ids of the first sequence
    lr, beta1, beta2, eps, weight_decay    AdamW's
    """

    seed: int = 0
    batch_size: int = 2
    tokens: int = 8
    steps: int = 2
    dtype: str = "float64"
    new_tokens: int = 4
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.1


class Trace(NamedTuple):
    """A recorded trace; `tensors` holds its arrays by name, in the order in which they were computed."""

    config: GPTConfig
    settings: Settings
    tensors: Tensors


def record(config: GPTConfig, settings: Settings) -> Trace:
    """The trace of a model with the weights of the seed. InputError for settings that the model cannot take."""
    checked(config, settings)
    tensors: Tensors = {}
    retrace(config, settings, given(config, settings), settings.dtype, _keeping(tensors))
    return Trace(config, settings, tensors)


def _keeping(tensors: Tensors) -> Watch:
    """The watch that keeps a copy of each tensor, because AdamW changes its arrays in the next step."""

    def keep(name: str, array: Any) -> None:
        tensors[name] = np.array(array)

    return keep


def checked(config: GPTConfig, settings: Settings) -> None:
    """Raise InputError for settings that a model of this configuration cannot take."""
    if settings.dtype not in DTYPES:
        raise InputError(f"dtype is {settings.dtype!r}; expected {' or '.join(DTYPES)}")
    if settings.batch_size < 1 or not 1 <= settings.tokens <= config.context_length:
        raise InputError(
            f"a step on {settings.batch_size} x {settings.tokens} tokens; expected at least 1 x 1, and at most "
            f"context_length {config.context_length} tokens"
        )
    if settings.steps < 1:
        raise InputError(f"steps is {settings.steps}; expected 1 or more")
    if not 0 <= settings.new_tokens <= config.context_length - 1:
        raise InputError(
            f"new_tokens is {settings.new_tokens}; expected 0 to context_length - 1, {config.context_length - 1}"
        )


# What is given


def given(config: GPTConfig, settings: Settings) -> Tensors:
    """The weights, token ids and dropout masks of the seed, and the prompt, by name; weights in float64.

    The weights are those of `GPTModel(config, seed)`, except that those of the norms are changed, because a scale of 1
    and a shift of 0 would hide that one is missing, and that all are rounded (SIGNIFICANT, FINEST). The token ids come
    from a part of the vocabulary, so that some occur more than once. The targets are the ids one place later.
    """
    rng = TorchGenerator(settings.seed)
    model = GPTModel(config, rng, np.float64)
    weights = model.named_parameters()
    for name, array in weights.items():
        if "norm" in name:
            array += rng.uniform(array.shape, -0.5, 0.5)
        array[...] = shortened(array)
    B, T = settings.batch_size, settings.tokens
    different = np.unique(rng.randint(0, config.vocab_size, (max(2, B * T // 2),)))
    text = different[rng.randint(0, len(different), (B, T + 1))]
    masks = model.draw_dropout_masks(rng, B, T)
    prompt = text[0, : max(1, min(T, config.context_length - settings.new_tokens) // 2)]
    return {
        **weights,
        INPUTS: text[:, :-1],
        TARGETS: text[:, 1:],
        **{f"{KEEP}{site}": keep for site, keep in _sites(masks) if keep is not None},
        PROMPT: prompt,
    }


def shortened(array: Array) -> Array:
    """The nearest values that float32, bfloat16 and float16 all hold exactly."""
    on_grid = np.round(np.ldexp(array, FINEST))
    mantissa, exponent = np.frexp(on_grid)
    return np.ldexp(np.ldexp(np.round(np.ldexp(mantissa, SIGNIFICANT)), exponent - SIGNIFICANT), -FINEST)


def _sites(masks: DropoutMasks) -> Iterator[tuple[str, Array | None]]:
    """The masks, by the names of the tensors that each dropout outputs."""
    yield "drop_emb", masks.embedding
    for i, block in enumerate(masks.blocks):
        yield f"trf_blocks.{i}.att.dropout", block.attention
        yield f"trf_blocks.{i}.drop_att", block.after_attention
        yield f"trf_blocks.{i}.drop_ff", block.after_feed_forward


def masks_of(config: GPTConfig, tensors: Mapping[str, Array]) -> DropoutMasks | None:
    """The dropout masks among the tensors of a trace; None if the model drops nothing."""
    if not config.drop_rate:
        return None
    blocks = (f"{KEEP}trf_blocks.{i}" for i in range(config.n_layers))
    return DropoutMasks(
        tensors[f"{KEEP}drop_emb"],
        tuple(
            transformer_block.DropoutMasks(
                *(tensors[f"{block}.{site}"] for site in ("att.dropout", "drop_att", "drop_ff"))
            )
            for block in blocks
        ),
    )


# The list of calls


def retrace(
    config: GPTConfig,
    settings: Settings,
    given: Mapping[str, Array],
    dtype: Any,
    tell: Watch,
    *,
    chosen: Array | None = None,
) -> None:
    """Compute a trace from what is given, and tell each tensor. What is told may be overwritten before it is used.

    dtype    in which it is computed, whatever the settings say
    chosen   the tokens that generation goes on with; None: the likeliest ones
    """
    weights = {name: array for name, array in given.items() if is_parameter(name)}
    model = GPTModel.from_state_dict(config, weights, dtype)
    for name, array in model.named_parameters().items():
        tell(name, array)
    for name in (INPUTS, TARGETS, *(name for name in given if name.startswith(KEEP))):
        tell(name, given[name])
    generated = _generate(model, given[PROMPT], settings.new_tokens, chosen)
    _train(model, settings, given, tell)
    tell(PROMPT, given[PROMPT])
    if settings.new_tokens:
        tell(LOGITS, generated[0])
        tell(TOKENS, generated[1])


#: How the names of parameters end, and those of activations do not.
_LEAVES = (".weight", ".bias", ".scale", ".shift")


def is_parameter(name: str) -> bool:
    """Whether this is the name of a parameter, before any step."""
    return name.endswith(_LEAVES) and not name.startswith(("d_", "step"))


def is_given(name: str) -> bool:
    """Whether the tensor of this name is given and not computed."""
    return name in (INPUTS, TARGETS, PROMPT) or name.startswith(KEEP) or is_parameter(name)


def is_state(name: str) -> bool:
    """Whether it is one of AdamW's moments or parameters after a step."""
    step, _, rest = name.partition(".")
    return step.startswith("step") and rest != "loss" and not rest.startswith("d_")


def _train(model: GPTModel, settings: Settings, given: Mapping[str, Array], tell: Watch) -> None:
    """Take the steps. In the first, every activation and its gradient is told; in the later ones, what they return."""
    for step in range(1, settings.steps + 1):
        before = f"step{step}."
        first = step == 1
        gradients = _loss_and_gradients(model, given, tell if first else _only_loss(before, tell))
        for name in reversed(gradients):
            tell(f"d_{name}" if first else f"{before}d_{name}", gradients[name])
        if first:  # not earlier, because it makes all the moments, and who is told may end before they are needed
            optimizer = _optimizer(model, settings)
        optimizer.step(gradients)
        for kind in ("exp_avg", "exp_avg_sq"):
            for name, moment in getattr(optimizer, kind).items():
                tell(f"{before}{kind}.{name}", moment)
        for name, parameter in optimizer.parameters.items():
            tell(f"{before}{name}", parameter)


def _optimizer(model: GPTModel, settings: Settings) -> AdamW:
    return AdamW(
        model,
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def _only_loss(before: str, tell: Watch) -> Watch:
    def tell_loss(name: str, array: Any) -> None:
        if name == "loss":
            tell(f"{before}loss", array)

    return tell_loss


def _loss_and_gradients(model: GPTModel, given: Mapping[str, Array], tell: Watch) -> dict[str, Array]:
    masks = masks_of(model.config, given)
    logits, saved = model.forward(given[INPUTS], masks=masks, watch=tell)
    loss, scored = next_token.forward(logits, given[TARGETS])
    tell("loss", loss)
    return model.backward(next_token.backward(loss.dtype.type(1), scored).logits, saved, watch=tell)


def _generate(model: GPTModel, prompt: Array, new_tokens: int, chosen: Array | None) -> tuple[Array, Array]:
    """The logits (N, V) before each new token, and the new tokens (N), with a cache of keys and values."""
    past, following = None, prompt[np.newaxis]
    logits = np.empty((new_tokens, model.config.vocab_size), model.dtype)
    tokens = np.empty(new_tokens, np.int64)
    for n in range(new_tokens):
        (logits[n],), past = model.decode(following, past)
        tokens[n] = logits[n].argmax()
        following = np.array([[tokens[n] if chosen is None else chosen[n]]])
    return logits, tokens
