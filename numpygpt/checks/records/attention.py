"""`attention`: calls of it, and real mistakes in it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Source, at_random
from numpygpt.ops import attention
from numpygpt.shapes import Array

_FORWARD = "ops.attention:forward"
_MASK = "np.copyto(attn_scores, -np.inf, where=unseen)"
_SCALE = "1 / math.sqrt(K)"


def draw(source: Source) -> Call:
    """Draw as many queries as keys, or fewer, and any way to say which keys a query may see."""
    B, H, T, K = source.size(2), source.size(3), source.size(5), source.size(4)
    S, rate = T + source.size(3) - 1, source.drop_rate()
    arguments = {name: source.normal(B, H, length, K) for name, length in (("queries", T), ("keys", S), ("values", S))}
    return Call(
        arguments,
        {
            "visible": source.visible(T, S, B),
            "keep": source.keep((B, H, T, S), rate),
            "drop_rate": rate,
            "wanted": source.wanted(*arguments),
        },
    )


def random_heads(source: Source, T: int = 5, K: int = 4, past: int = 0) -> dict[str, Array]:
    """Queries of T tokens, and keys and values of past + T tokens."""
    lengths = {"queries": T, "keys": past + T, "values": past + T}
    return {name: source.normal(2, 3, length, K) for name, length in lengths.items()}


#: A mask for two sequences of five tokens: one query sees no key, one sees all, and each other sees some of the keys,
#: not always its own.
SOME_SEEN = np.array(
    [
        [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 1], [1, 0, 0, 1, 0], [0, 0, 0, 0, 1]],
        [[1, 0, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0], [1, 1, 0, 1, 1], [0, 1, 1, 1, 0]],
    ],
    bool,
)[:, np.newaxis]


def ways(source: Source) -> dict[str, dict[str, Any]]:
    """Several options of attention from five queries to five keys, by what is special about them."""
    dropped = {"keep": source.rng.random((2, 3, 5, 5)) < 0.7, "drop_rate": 0.3}
    return {"": {}, "dropout": dropped, "a mask": {"visible": SOME_SEEN}, "all seen": {"visible": "all"}}


def complex_step(source: Source) -> Mapping[str, Call]:
    """Calls without and with dropout, under the causal mask, under another mask, and without one."""
    heads = random_heads(source)
    return {what: Call(heads, options) for what, options in ways(source).items()}


def special_calls(options: Mapping[str, Any]) -> dict[str, Call]:
    """Calls with these options in addition to their own; flash attention uses them too."""
    heads = random_heads(at_random(0))
    huge = heads | {"queries": 1e5 * heads["queries"]}
    return {
        "scores of 1e5": Call(huge, {**options}),
        "scores of 1e5, a mask": Call(huge, {**options, "visible": SOME_SEEN}),
        "one token": Call(random_heads(at_random(1), T=1), {**options}),
        "one feature a head": Call(random_heads(at_random(2), K=1), {**options}),
        "no key is seen": Call(heads, {**options, "visible": np.zeros_like(SOME_SEEN)}),
        "one token after a past, all seen": Call(
            random_heads(at_random(3), T=1, past=4), {**options, "visible": "all"}
        ),
    }


BUGS = (
    Bug(
        "no_causal_mask",
        "every position reads every other",
        "entrenar#310",
        "trf_blocks.0.att.attn_scores",
        ("causality", "forward"),
        (Change(_FORWARD, _MASK, "pass"),),
    ),
    Bug(
        "mask_dropped_with_dropout",
        "the causal mask is there only while dropout is not",
        "keras#23038",
        "trf_blocks.0.att.attn_scores",
        ("causality", "forward"),
        (Change(_FORWARD, _MASK, f"{_MASK} if keep is None else None"),),
    ),
    Bug(
        "mask_inverted",
        "the mask hides the past and shows the future",
        "cs249r_book#1785",
        "trf_blocks.0.att.attn_scores",
        ("causality", "forward"),
        (Change(_FORWARD, _MASK, _MASK.replace("where=", "where=~")),),
    ),
    Bug(
        "mask_of_minus_10000",
        "masked scores are -1e4, not -inf: the training loss looks good, and the future leaks in at extreme scores",
        "transformers#15199, #17306",
        "trf_blocks.0.att.attn_scores",
        ("causality", "forward"),
        (Change(_FORWARD, _MASK, _MASK.replace("-np.inf", "-1e4")),),
    ),
    Bug(
        "mask_is_added",
        "a mask that is added lets NaN in a masked slot through",
        "pytorch#101967",
        "none",
        ("causality",),
        (Change(_FORWARD, _MASK, "attn_scores += np.where(unseen, -np.inf, 0)"),),
    ),
    Bug(
        "scale_by_emb_dim",
        "the scores are divided by sqrt(D), not by sqrt(K): the loss moves by only 3e-6",
        "dfdx#171",
        "trf_blocks.0.att.attn_scores",
        ("forward", "gradients"),
        (
            Change(_FORWARD, _SCALE, "1 / math.sqrt(queries.shape[1] * K)"),
            Change(
                "ops.attention:backward",
                "1 / math.sqrt(saved.queries.shape[-1])",
                "1 / math.sqrt(saved.queries.shape[1] * saved.queries.shape[-1])",
            ),
        ),
    ),
    Bug(
        "scale_missing_with_cache",
        "one of two paths forgets the scale",
        "mlc-llm#3426",
        "decode.logits",
        ("cache",),
        (Change(_FORWARD, _SCALE, f"({_SCALE} if T == S else 1)"),),
    ),
)

CONTROLS = (
    Bug(
        "values_scaled_later",
        "the scale is applied to the scores, not to the queries",
        "control",
        "none",
        (),
        (
            Change(
                _FORWARD,
                "product(queries * (1 / math.sqrt(K)), keys.mT, low)",
                "product(queries, keys.mT, low) * (1 / math.sqrt(K))",
            ),
        ),
    ),
)

RECORD = Record(attention, draw, special_calls({}), complex_step, BUGS, CONTROLS)
