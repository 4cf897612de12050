"""What may be wrong with a candidate: the planted bugs, and slips that people make with layouts, options and settings.

A cause is a way of computing the trace. `numpygpt.checks.diagnose` replays a candidate in each of these ways, and sees
which of them gives the candidate's own tensor.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np

from numpygpt.checks.planting import Bug, Change, planted
from numpygpt.checks.records import BUGS
from numpygpt.checks.replay import Replay
from numpygpt.checks.trace import INPUTS, TARGETS, Settings, Tensors, is_state
from numpygpt.model.config import ACTIVATIONS, GPTConfig
from numpygpt.shapes import Array

Given = Callable[[Tensors, GPTConfig], Tensors]


class Cause(NamedTuple):
    """A way in which the candidate may differ from the reference.

    what       what is different, in words
    seen_at    where it was met; "" if nowhere in particular
    bug        a change of the code
    config     changed fields of the configuration
    settings   changed settings
    given      changes what is given
    """

    name: str
    what: str
    seen_at: str = ""
    bug: Bug | None = None
    config: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}
    given: Given | None = None

    def replayed(self, replay: Replay, base: Tensors, up_to: str | None = None) -> Tensors:
        """The candidate's tensors as its own inputs lead to them in this way, as far as they can be computed.

        base   what is given, before the cause changes it
        """
        header = replay.reference.header
        config = replace(header.config, **self.config)
        settings = header.settings._replace(**self.settings)
        given = base if self.given is None else self.given(dict(base), config)
        try:
            with planted(self.bug) if self.bug else nullcontext():
                return replay.run(up_to=up_to, config=config, settings=settings, given=given, may_crash=True)
        except (LookupError, SyntaxError):
            return {}  # two changes of the same line do not go together

    def can_change(self, name: str) -> bool:
        """Whether it may change the tensor of this name, if those that it is computed from are given.

        So the replays that could show nothing are spared.
        """
        functions = [change.function for change in self.bug.changes] if self.bug else []
        in_optimizer = bool(self.settings) or any(function.startswith("training.") for function in functions)
        if is_state(name):
            return in_optimizer
        if functions and all(function.startswith("training.") for function in functions):
            return False
        is_forward = not name.startswith(("d_", "step"))
        only_backward = bool(functions) and all("backward" in function for function in functions)
        return not self.settings and not (is_forward and only_backward)

    def together_with(self, other: "Cause") -> "Cause":
        """Both at once."""
        return Cause(
            f"{self.name} and {other.name}",
            f"{self.what}; and {other.what}",
            ", ".join(filter(None, (self.seen_at, other.seen_at))),
            _both_bugs(self.bug, other.bug),
            {**self.config, **other.config},
            {**self.settings, **other.settings},
            _both_given(self.given, other.given),
        )


def _both_bugs(bug: Bug | None, other: Bug | None) -> Bug | None:
    if bug is None or other is None:
        return bug or other
    return bug._replace(changes=bug.changes + other.changes)


def _both_given(first: Given | None, second: Given | None) -> Given | None:
    if first is None or second is None:
        return first or second

    def given(tensors: Tensors, config: GPTConfig) -> Tensors:
        return second(first(tensors, config), config)

    return given


def causes(config: GPTConfig, settings: Settings) -> Iterator[Cause]:
    """Every cause that makes sense for this model."""
    for bug in BUGS.values():
        if any(change.function.startswith(_TRACED) for change in bug.changes):
            yield Cause(bug.name, bug.what, bug.seen_at, bug)
    yield from (Cause(bug.name, bug.what, bug.seen_at, bug) for bug in SLIPS)
    yield from _of_options(config, settings)
    yield from _of_layouts()
    yield from _of_given()


#: The modules that a trace runs through.
_TRACED = ("ops.", "layers.", "model.", "objectives.", "training.adamw", "training.optimizer:")

# Slips in the code

_ATTENTION, _BLOCK = "ops.attention", "layers.transformer_block"
_FORWARD_SCALE = "queries * (1 / math.sqrt(K))"
_BACKWARD_SCALE = "1 / math.sqrt(saved.queries.shape[-1])"
_GELU_SHARE, _GELU_SLOPE = "u = C * (x + A * x * x * x)", "(2 * C * (1 + 3 * A * x * x))"


def _slip(name: str, what: str, *changes: tuple[str, str, str]) -> Bug:
    return Bug(name, what, "", "none", (), tuple(Change(*change) for change in changes))


def _scores_scaled(name: str, what: str, forward: str, backward: str) -> Bug:
    return _slip(
        name,
        what,
        (f"{_ATTENTION}:forward", _FORWARD_SCALE, f"queries * {forward}"),
        (f"{_ATTENTION}:backward", _BACKWARD_SCALE, backward),
    )


def _other_gelu(name: str, what: str, share: str, slope: str) -> Bug:
    """GELU with another share of x that passes, (1 + tanh(u)) / 2; the slope is 2 du/dx."""
    return _slip(
        name, what, ("ops.gelu:forward", _GELU_SHARE, f"u = {share}"), ("ops.gelu:backward", _GELU_SLOPE, slope)
    )


SLIPS: tuple[Bug, ...] = (
    _scores_scaled("scores_not_scaled", "the scores are not divided by sqrt(K)", "1", "1"),
    _scores_scaled(
        "scores_divided_by_head_dim", "the scores are divided by K, not by its root", "(1 / K)",
        "1 / saved.queries.shape[-1]",
    ),
    _slip(
        "scale_forgotten_in_the_backward", "the backward of attention does not divide by sqrt(K)",
        (f"{_ATTENTION}:backward", _BACKWARD_SCALE, "1"),
    ),
    _other_gelu("quick_gelu", "x sigmoid(1.702 x) stands in the place of GELU", "0.851 * x", "1.702"),
    _other_gelu("silu", "x sigmoid(x) stands in the place of GELU", "0.5 * x", "1"),
    _other_gelu("gelu_without_its_cube", "GELU lacks the term with x cubed", "C * x", "(2 * C)"),
    _slip(
        "relu", "ReLU stands in the place of GELU",
        ("ops.gelu:forward", "np.multiply(x, s, out=y)", "np.multiply(x, x > 0, out=y)"),
        ("ops.gelu:backward", "s + x * ds_dx", "x > 0"),
    ),
    _slip(
        "norm_does_not_center", "the norm does not subtract the mean, as RMSNorm",
        ("ops.layer_norm:forward", "centered = x - x.mean(axis=-1, keepdims=True)", "centered = x - 0 * x"),
        ("ops.layer_norm:backward", "d_x -= d_x.mean(axis=-1, keepdims=True)", "pass"),
    ),
    _slip(
        "residual_around_attention_missing", "the block's input is not added to what attention gives",
        (f"{_BLOCK}:forward", "r = x + dropped", "r = dropped + 0 * x"),
        (f"{_BLOCK}:backward", "d_x += d_r", "pass"),
    ),
    _slip(
        "residual_around_feed_forward_missing", "the feed-forward layers' input is not added to what they give",
        (f"{_BLOCK}:forward", "y = r + dropped", "y = dropped + 0 * r"),
        (f"{_BLOCK}:backward", "d_r += d_y", "pass"),
    ),
    _slip(
        "residual_gradient_around_attention_missing", "the gradient does not go past attention",
        (f"{_BLOCK}:backward", "d_x += d_r", "pass"),
    ),
    _slip(
        "residual_gradient_around_feed_forward_missing", "the gradient does not go past the feed-forward layers",
        (f"{_BLOCK}:backward", "d_r += d_y", "pass"),
    ),
    _slip(
        "loss_summed", "the loss is the sum over the targets, not their mean",
        ("ops.cross_entropy:forward", "losses.sum() / logits.dtype.type(max(1, len(counted)))", "losses.sum()"),
        ("ops.cross_entropy:backward", "d_loss / max(1, len(counted))", "d_loss"),
    ),
    _slip(
        "loss_gradient_not_divided", "the gradient of the logits is not divided by the number of targets",
        ("ops.cross_entropy:backward", "d_loss / max(1, len(counted))", "d_loss"),
    ),
    _slip(
        "one_hot_not_subtracted", "the gradient of the logits lacks the target's one",
        (
            "ops.cross_entropy:backward", "d_logits[counted, targets[counted]] -= row_weight[counted, 0]",
            "d_logits[counted, targets[counted]] -= 0 * row_weight[counted, 0]",
        ),
    ),
    _slip(
        "dropout_not_scaled", "dropout does not divide what it keeps by 1 - drop_rate",
        ("ops.dropout:_kept_and_scaled", "1 / (1 - drop_rate)", "1"),
    ),
    _slip(
        "dropout_mask_inverted", "dropout keeps what it should drop",
        ("ops.dropout:_kept_and_scaled", "np.multiply(x, keep, out=y)", "np.multiply(x, ~keep, out=y)"),
    ),
    _slip(
        "embeddings_scaled", "the token embeddings are multiplied by sqrt(D)",
        ("model.body:forward", 'watch("tok_emb", tokens)', 'tokens = tokens * tokens.shape[-1] ** 0.5\n'
         '    watch("tok_emb", tokens)'),
    ),
    _slip(
        "positions_begin_at_one", "the first token has position 1",
        ("model.body:forward", "np.arange(T) + (past[0].length if past else 0)",
         "np.arange(T) + (past[0].length if past else 0) + 1"),
    ),
    _slip(
        "no_bias_correction", "AdamW does not correct its moments for their start at zero",
        ("training.adamw:AdamW.update", "1 - beta1**self.steps", "1.0"),
        ("training.adamw:AdamW.update", "math.sqrt(1 - beta2**self.steps)", "1.0"),
    ),
    _slip(
        "only_matrices_decay", "biases and norms have no weight decay",
        (
            "training.optimizer:Optimizer.rates_of", "return Rates(self.lr, self.weight_decay)",
            'return Rates(self.lr, self.weight_decay * name.endswith(".weight"))',
        ),
    ),
    _slip(
        "gradients_clipped", "the gradients are clipped to the norm 1 before the step",
        (
            "training.optimizer:Optimizer.step", "self.steps += 1",
            "self.steps += 1\n"
            "    total = sum(float((g * g).sum()) for g in grads.values()) ** 0.5\n"
            "    grads = {name: g * min(1.0, 1 / (total + 1e-6)) for name, g in grads.items()}",
        ),
    ),
)  # fmt: skip

# Slips in options and settings


def _of_options(config: GPTConfig, settings: Settings) -> Iterator[Cause]:
    for eps in (1e-3, 1e-5, 1e-6, 1e-8, 1e-12):
        if eps != config.norm_eps:
            what = f"the norms add {eps:g}, not {config.norm_eps:g}"
            yield Cause(f"norm_eps_{eps:g}", what, config={"norm_eps": eps})
    for activation in ACTIVATIONS:
        if activation != config.activation:
            yield Cause(activation, f"the activation is {activation}", config={"activation": activation})
    if config.drop_rate:
        yield Cause("no_dropout", "nothing is dropped", config={"drop_rate": 0.0})
    others = {"beta2": (0.95, 0.98, 0.99), "eps": (1e-6, 1e-7, 1e-9, 1e-10), "weight_decay": (0.0, 0.01)}
    for name, values in others.items():
        for value in values:
            if value != getattr(settings, name):
                what = f"AdamW's {name} is {value:g}, not {getattr(settings, name):g}"
                yield Cause(f"adamw_{name}_{value:g}", what, settings={name: value})


# Slips in the layout of weights, and in what is given

_ATT = ("W_query", "W_key", "W_value")


def _of_layouts() -> Iterator[Cause]:
    for order in list(permutations(_ATT))[1:]:
        words = ", ".join(name.removeprefix("W_") for name in order)
        yield Cause(
            f"order_{'_'.join(name.removeprefix('W_') for name in order)}",
            f"the weights of queries, keys and values are taken for those of {words}",
            "swift-models#564",
            given=_taken_for(order),
        )
    yield Cause(
        "heads_interleaved_in_the_weights",
        "the rows of queries', keys' and values' weights are taken to lie head by head, not one after another",
        given=_interleaved,
    )
    for name in (*_ATT, "out_proj"):
        yield Cause(
            f"{name}_transposed", f"in and out of {name}'s weight are exchanged", "nanoGPT#190",
            given=_changed(f"att.{name}.weight", lambda array: array.T.copy()),
        )  # fmt: skip
    ends = {
        "qkv_bias": ("W_query.bias", "W_key.bias", "W_value.bias"),
        "out_proj_bias": ("out_proj.bias",),
        "feed_forward_bias": ("ff.layers.0.bias", "ff.layers.2.bias"),
        "norm_shift": (".shift",),
        "positions": ("pos_emb.weight",),
    }
    for name, endings in ends.items():
        yield Cause(f"{name}_missing", f"{' and '.join(endings)} are not added", given=_changed(endings, np.zeros_like))
    yield Cause("norm_scale_missing", "norms do not multiply by their scale", given=_changed(".scale", np.ones_like))
    yield Cause("norm_scale_plus_one", "norms multiply by 1 + scale", given=_changed(".scale", lambda array: 1 + array))


def _changed(ending: str | tuple[str, ...], function: Callable[[Array], Array]) -> Given:
    def given(tensors: Tensors, config: GPTConfig) -> Tensors:
        return {name: function(array) if name.endswith(ending) else array for name, array in tensors.items()}

    return given


def _taken_for(order: tuple[str, ...]) -> Given:
    """The weights of `_ATT`, in this order, under the names of the order."""

    def given(tensors: Tensors, config: GPTConfig) -> Tensors:
        renamed = dict(tensors)
        for name in tensors:
            for own, other in zip(_ATT, order, strict=True):
                if f".{own}." in name:
                    renamed[name.replace(f".{own}.", f".{other}.")] = tensors[name]
        return renamed

    return given


def _interleaved(tensors: Tensors, config: GPTConfig) -> Tensors:
    """Rows [q of head 0, k of head 0, v of head 0, q of head 1, ...] are read where ours lie [all q, all k, all v]."""
    changed = dict(tensors)
    for i in range(config.n_layers):
        for leaf in ("weight", "bias"):
            names = [f"trf_blocks.{i}.att.{name}.{leaf}" for name in _ATT]
            if names[0] not in tensors:
                continue
            together = np.concatenate([tensors[name] for name in names])
            by_head = together.reshape(config.n_heads, 3, config.head_dim, *together.shape[1:])
            changed |= {
                name: by_head[:, part].reshape(tensors[name].shape) for part, name in enumerate(names)
            }
    return changed


def _of_given() -> Iterator[Cause]:
    def replaced(**changes: Callable[[Tensors], Array]) -> Given:
        return lambda tensors, config: tensors | {name: change(tensors) for name, change in changes.items()}

    yield Cause(
        "targets_not_shifted", "the targets are the inputs", "transformers#404",
        given=replaced(**{TARGETS: lambda tensors: tensors[INPUTS]}),
    )  # fmt: skip
    yield Cause(
        "targets_shifted_twice", "the targets are two tokens later", "transformers#37830",
        given=replaced(**{TARGETS: lambda tensors: np.roll(tensors[TARGETS], -1, axis=-1)}),
    )  # fmt: skip
