"""`multi_head_attention`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.records.attention import SOME_SEEN
from numpygpt.checks.source import Only, Source, at_random, random_block
from numpygpt.layers import multi_head_attention
from numpygpt.tree import mapped

_HEADS = "layers.multi_head_attention"


def draw(source: Source) -> Call:
    """Draw weights in one array or apart, any of them trained, and attention in tiles or not."""
    block, n_heads = source.block()
    B, T, rate = source.size(2), source.size(4), source.drop_rate()
    x = source.normal(B, T, len(block.norm1.scale))
    return Call(
        {"x": x, "parameters": block.att},
        {
            "n_heads": n_heads,
            "visible": source.visible(T, T, B),
            "keep": source.keep((B, n_heads, T, T), rate),
            "drop_rate": rate,
            "flash": source.yes(),
            "wants_x": not source.yes(),
            "trained": source.trained(block.att),
        },
    )


def _call(source: Source) -> Call:
    return Call({"x": source.normal(2, 5, 12), "parameters": random_block(source, 3, 4).att}, {"n_heads": 3})


def _with(call: Call, **options: object) -> Call:
    return call._replace(options={**call.options, **options})


#: What adapters usually train. It takes three products, and of the keys only their share of the gradient of x.
QUERIES_AND_VALUES = Only({"W_query.weight", "W_query.bias", "W_value.weight", "W_value.bias"})


def complex_step(source: Source) -> Mapping[str, Call]:
    """Calls with one product or three, in tiles or not, under either mask, and with all or few leaves trained."""
    call = _call(source)
    apart = call._replace(arguments={**call.arguments, "parameters": mapped(np.copy, call.arguments["parameters"])})
    return {
        "": call,
        "flash": _with(call, flash=True),
        "three products": apart,
        "a mask": _with(call, visible=SOME_SEEN),
        "flash, a mask": _with(call, visible=SOME_SEEN, flash=True),
        "some trained": _with(call, trained=QUERIES_AND_VALUES),
    }


SPECIAL = {
    f"{what}{' by flash attention' if flash else ''}": _with(call, flash=flash)
    for flash in (False, True)
    for what, call in {
        "queries and values trained": _with(_call(at_random(0)), trained=QUERIES_AND_VALUES),
        "keys trained, x without gradient": _with(
            _call(at_random(1)), trained=Only({"W_key.weight"}), wants_x=False
        ),
        "the last bias alone": _with(_call(at_random(2)), trained=Only({"out_proj.bias"}), wants_x=False),
        "no key is seen": _with(_call(at_random(3)), visible=np.zeros_like(SOME_SEEN)),
    }.items()
}

BUGS = (
    Bug(
        "heads_merged_without_transpose",
        "heads are merged by a reshape alone; the training loss still falls",
        "no public report known",
        "trf_blocks.0.att.context_vec",
        ("forward", "complex_step"),
        (Change(f"{_HEADS}:merge_heads", "x.swapaxes(1, 2).reshape", "x.reshape"),),
    ),
    Bug(
        "heads_interleaved",
        "the merge interleaves the features of the heads, which is invisible with one head",
        "no public report known",
        "trf_blocks.0.att.context_vec",
        ("forward", "complex_step"),
        (Change(f"{_HEADS}:merge_heads", "x.swapaxes(1, 2)", "x.transpose(0, 2, 3, 1)"),),
    ),
    Bug(
        "heads_split_without_transpose",
        "heads are split by a reshape alone, so that a head is a stretch of the text",
        "FuxiCTR#30",
        "trf_blocks.0.att.queries",
        ("forward", "causality"),
        (
            Change(
                f"{_HEADS}:split_heads",
                "x.reshape(*x.shape[:2], n_heads, -1).swapaxes(1, 2)",
                "x.reshape(len(x), n_heads, x.shape[1], -1)",
            ),
        ),
    ),
    Bug(
        "queries_keys_values_untrained",
        "queries, keys and values get no gradient",
        "aprender#2203",
        "d_trf_blocks.1.norm1",
        ("gradients", "complex_step"),
        (Change(f"{_HEADS}:_through_one_product", "projection.backward(d_qkv,", "projection.backward(0 * d_qkv,"),),
    ),
    Bug(
        "stacked_product_split_in_another_order",
        "one product gives queries, keys and values, and they are taken from it in another order",
        "slapo#46",
        "trf_blocks.0.att.queries",
        ("forward", "gradients"),
        (Change(f"{_HEADS}:_project", "_thirds(qkv)", "_thirds(qkv)[::-1]"),),
    ),
    Bug(
        "one_of_three_products_forgotten",
        "x has three uses, and one of them replaces the gradient of those before",
        "no public report known",
        "frozen.d_trf_blocks.0.norm1",
        ("frozen", "complex_step"),
        (Change(f"{_HEADS}:_through_three_products", "d_part if d_x is None else d_x + d_part", "d_part"),),
    ),
)

RECORD = Record(multi_head_attention, draw, SPECIAL, complex_step, BUGS)
