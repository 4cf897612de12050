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

from numpygpt.checks.planting import Bug, planted
from numpygpt.checks.records import BUGS
from numpygpt.checks.replay import Replay
from numpygpt.checks.slips import SLIPS
from numpygpt.checks.trace import INPUTS, TARGETS, Settings, Tensors, is_parameter, is_state
from numpygpt.errors import InputError
from numpygpt.model.config import ACTIVATIONS, GPTConfig
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.shapes import Array

Given = Callable[[Tensors, GPTConfig], Tensors]
#: The weights of so many blocks are tried in each other's place.
MOST_BLOCKS = 4


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
        settings = header.settings._replace(**self.settings)
        try:
            config = replace(header.config, **self.config)
            given = base if self.given is None else self.given(dict(base), config)
            with planted(self.bug) if self.bug else nullcontext():
                return replay.run(up_to=up_to, config=config, settings=settings, given=given, may_crash=True)
        except (LookupError, SyntaxError, InputError):
            return {}  # two changes of the same line do not go together, or there is no model of these numbers

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
    unseen = {name for names in UNSEEN.values() for name in names}
    for bug in BUGS.values():
        if bug.name not in unseen and is_traced(bug):
            yield Cause(bug.name, bug.what, bug.seen_at, bug)
    for slip in SLIPS:
        of_activation = all(change.function.startswith("ops.gelu:") for change in slip.changes)
        changed = {"activation": "gelu_tanh"} if of_activation else {}  # the one that the slips change
        yield Cause(slip.name, slip.what, slip.seen_at, slip, config=changed)
    yield from _of_options(config)
    yield from _of_settings(settings)
    yield from _of_layouts()
    yield from _of_missing_weights()
    yield from _of_other_weights(config)
    yield from _of_given()


#: {why a trace does not show them: the planted bugs in the modules that a trace runs through}.
UNSEEN: Mapping[str, tuple[str, ...]] = {
    "a trace has no flash attention": (
        "flash_context_does_not_shrink", "flash_total_does_not_shrink", "flash_row_sum_of_a_tile",
        "flash_values_without_dropout", "flash_mask_from_the_upper_left", "flash_ignores_the_mask",
        "flash_skips_a_tile_that_is_seen",
    ),
    "every attention of a trace is causal, and its batch has no padding": (
        "all_seen_as_causal", "padding_is_seen", "softmax_of_nothing_is_nan", "positions_of_each_sequence_summed",
    ),
    "a trace trains every parameter": (
        "frozen_leaf_gets_a_gradient", "gradient_ends_at_a_frozen_block", "one_of_three_products_forgotten",
    ),
    "a trace recomputes no block, and reads no input of a block again": (
        "recomputed_without_dropout", "residual_in_place",
    ),
    "a trace has no evaluation, and takes each step once": ("dropout_alive_in_evaluation", "evaluation_ends_dropout"),
    "a trace generates one continuation of one prompt": (
        "cache_overwritten_by_another_continuation", "cache_rows_not_reordered",
    ),
    "a trace has no groups of parameters, and copies no optimizer": (
        "norms_decay_after_all", "copied_apart_from_its_model",
    ),
    "a trace has no adapters, and no quantized matrices": (
        "lora_gradient_of_A_unscaled", "lora_gradient_of_B_unscaled", "lora_paths_give_x_no_gradient",
        "lora_applied_after_it_was_merged", "lora_drops_nothing", "steps_forgotten_in_backward",
        "rows_of_the_block_before", "last_block_of_rows_left_out", "constants_of_the_first_rows",
        "bias_gradient_of_packed_averaged",
    ),
    "it shows at extreme values alone, and those of a trace are ordinary": (
        "all_ignored_is_nan", "mask_is_added", "one_pass_variance",
    ),
    "it shows in float32 alone, and the replays are in float64": ("float64_inside",),
}  # fmt: skip

#: The operations and objectives of tuning, through which no trace runs.
OF_TUNING = (
    "ops.token_log_probs:", "ops.weighted_mean:", "ops.kl_divergence:", "ops.kl_estimate:", "ops.logistic_loss:",
    "ops.sigmoid:", "ops.relu:", "ops.silu:",
    "objectives.weighted_next_token:", "objectives.classification:", "objectives.reward:", "objectives.dpo:",
    "objectives.clipped_policy:", "objectives.clipped_value:", "objectives.reinforce:", "objectives.grpo:",
    "objectives.distillation:", "objectives.hidden_match:",
)  # fmt: skip


def is_traced(bug: Bug) -> bool:
    """Whether a trace runs through a module that the bug changes."""
    rooms = ("ops.", "layers.", "model.", "objectives.", "training.adamw", "training.optimizer:")
    functions = [change.function for change in bug.changes]
    return any(name.startswith(rooms) and not name.startswith(OF_TUNING) for name in functions)


# Slips in options and settings


def _of_options(config: GPTConfig) -> Iterator[Cause]:
    for eps in (1e-3, 1e-5, 1e-6, 1e-8, 1e-12):
        if eps != config.norm_eps:
            what = f"the norms add {eps:g}, not {config.norm_eps:g}"
            yield Cause(f"norm_eps_{eps:g}", what, config={"norm_eps": eps})
    for activation in ACTIVATIONS:
        if activation != config.activation:
            yield Cause(activation, f"the activation is {activation}", config={"activation": activation})
    for n_heads in (number for number in range(1, config.emb_dim + 1) if config.emb_dim % number == 0):
        what = f"there are {n_heads} heads, not {config.n_heads}"
        yield Cause(f"n_heads_{n_heads}", what, config={"n_heads": n_heads})
    if config.drop_rate:
        yield Cause("no_dropout", "nothing is dropped", config={"drop_rate": 0.0})


def _of_settings(settings: Settings) -> Iterator[Cause]:
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
            given=_with_names({f".{other}.": f".{own}." for own, other in zip(_ATT, order, strict=True)}),
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


def _of_missing_weights() -> Iterator[Cause]:
    ends = {
        "qkv_bias": ("W_query.bias", "W_key.bias", "W_value.bias"),
        "query_bias": ("W_query.bias",),
        "key_bias": ("W_key.bias",),
        "value_bias": ("W_value.bias",),
        "out_proj_bias": ("out_proj.bias",),
        "feed_forward_bias": ("ff.layers.0.bias", "ff.layers.2.bias"),
        "first_feed_forward_bias": ("ff.layers.0.bias",),
        "last_feed_forward_bias": ("ff.layers.2.bias",),
        "norm_shift": (".shift",),
        "final_norm_shift": ("final_norm.shift",),
        "positions": ("pos_emb.weight",),
    }
    for name, endings in ends.items():
        words = f"{' and '.join(endings)} {'are' if len(endings) > 1 else 'is'} not added"
        yield Cause(f"{name}_missing", words, given=_changed(endings, np.zeros_like))
    yield Cause("norm_scale_missing", "norms do not multiply by their scale", given=_changed(".scale", np.ones_like))
    yield Cause("norm_scale_plus_one", "norms multiply by 1 + scale", given=_changed(".scale", lambda array: 1 + array))


def _of_other_weights(config: GPTConfig) -> Iterator[Cause]:
    """One part of the model has the weights of another."""
    pairs = {
        "norms_exchanged": ("norm1 and norm2 have each other's weights", {".norm1.": ".norm2.", ".norm2.": ".norm1."}),
        "norm1_twice": ("norm2 has the weights of norm1", {".norm2.": ".norm1."}),
        "norm2_twice": ("norm1 has the weights of norm2", {".norm1.": ".norm2."}),
        "scale_and_shift_exchanged": ("norms' scale and shift are exchanged", {".scale": ".shift", ".shift": ".scale"}),
        "head_of_the_embedding": ("the head has the weights of the token embedding", {"out_head.": "tok_emb."}),
        "embedding_of_the_head": ("the token embedding has the weights of the head", {"tok_emb.": "out_head."}),
    }
    blocks = [f"trf_blocks.{i}." for i in range(config.n_layers)]
    for i, j in permutations(range(min(config.n_layers, MOST_BLOCKS)), 2):
        pairs[f"block_{i}_of_{j}"] = (f"block {i} has the weights of block {j}", {blocks[i]: blocks[j]})
    if config.n_layers > 1:
        reverse = dict(zip(blocks, reversed(blocks), strict=True))
        pairs["blocks_reversed"] = ("the blocks have each other's weights, in the reverse order", reverse)
    for name, (what, taken_from) in pairs.items():
        yield Cause(name, what, given=_with_names(taken_from))


def _with_names(taken_from: Mapping[str, str]) -> Given:
    """The weights whose names have a part of the keys are those of the names with the value in its place."""

    def given(tensors: Tensors, config: GPTConfig) -> Tensors:
        changed = dict(tensors)
        for name in filter(is_parameter, tensors):
            for part, other in taken_from.items():
                source = name.replace(part, other)
                if part in name and source in tensors:
                    changed[name] = tensors[source]
        return changed

    return given


def _changed(ending: str | tuple[str, ...], function: Callable[[Array], Array]) -> Given:
    def given(tensors: Tensors, config: GPTConfig) -> Tensors:
        return {name: function(array) if name.endswith(ending) else array for name, array in tensors.items()}

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
    for place, at in (("first", 0), ("last", -1)):
        yield Cause(
            f"{place}_target_ignored", f"the {place} target of each sequence does not count",
            given=replaced(**{TARGETS: lambda tensors, at=at: _ignored(tensors[TARGETS], at)}),
        )  # fmt: skip


def _ignored(targets: Array, at: int) -> Array:
    """The targets, of which that at this place of each sequence does not count."""
    changed = targets.copy()
    changed[:, at] = IGNORE_INDEX
    return changed
