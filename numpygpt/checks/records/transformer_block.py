"""`transformer_block`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.records.attention import SOME_SEEN
from numpygpt.checks.source import Only, Source, at_random, random_block
from numpygpt.layers import transformer_block

_FORWARD = "layers.transformer_block:forward"


def draw(source: Source) -> Call:
    """Draw a block with every option except a past."""
    block, n_heads = source.block()
    B, T, rate = source.size(2), source.size(4), source.drop_rate()
    x = source.normal(B, T, len(block.norm1.scale))
    return Call(
        {"x": x, "parameters": block},
        {
            "n_heads": n_heads,
            "visible": source.visible(T, T, B),
            "masks": source.block_masks(x.shape, n_heads, rate),
            "drop_rate": rate,
            "flash": source.yes(),
            "activation": source.activation(),
            "norm_eps": source.norm_eps(),
            "wants_x": not source.yes(),
            "trained": source.trained(block),
        },
    )


def _call(source: Source, *, biases: bool = True, **options: object) -> Call:
    x = source.normal(2, 5, 6)
    masks = transformer_block.draw_masks(source.rng, x.shape, 3, 0.3)
    return Call(
        {"x": x, "parameters": random_block(source, 3, 2, biases=biases)},
        {"n_heads": 3, "masks": masks, "drop_rate": 0.3, **options},
    )


#: Some trained leaves, with frozen ones before, between and after them.
SOME = Only({"norm1.shift", "att.W_value.weight", "ff.layers.0.bias"})


def complex_step(source: Source) -> Mapping[str, Call]:
    """All leaves trained under the causal mask, and a few trained under another mask."""
    return {"": _call(source), "some trained": _call(source, trained=SOME, wants_x=False, visible=SOME_SEEN)}


SPECIAL = {
    "one token": Call(
        {"x": np.array([[[1.0, -2.0, 0.5, 3.0]]]), "parameters": random_block(at_random(0), 2, 2)},
        {"n_heads": 2},
    ),
    "some trained": _call(at_random(1), trained=SOME, wants_x=False),
    "the last norm alone": _call(at_random(2), trained=Only({"norm2.scale"}), wants_x=False),
    "x alone": _call(at_random(3), trained=Only(), flash=True),
    "no key is seen": _call(at_random(4), visible=np.zeros_like(SOME_SEEN)),
    "no biases, exact GELU, a large eps": _call(at_random(5), biases=False, activation="gelu_erf", norm_eps=0.5),
}

BUGS = (
    Bug(
        "dropout_mask_reused",
        "two sites of a block use one mask",
        "no public report known",
        "trf_blocks.0.drop_ff",
        ("forward", "gradients"),
        (Change(_FORWARD, "masks.after_feed_forward", "masks.after_attention"),),
    ),
    Bug(
        "dropout_mask_of_another_site",
        "the backward takes the mask that the other site left on the module",
        "no public report known",
        "d_trf_blocks.1.ff.layers.2",
        ("gradients", "complex_step"),
        (Change("layers.transformer_block:backward", "saved.drop_ff", "saved.drop_att"),),
    ),
    Bug(
        "post_norm",
        "attention reads x, and the norm comes after the sum",
        "no public report known",
        "trf_blocks.0.norm1",
        ("forward", "complex_step"),
        (
            Change(
                _FORWARD,
                "a, norm1 = casting.forward(  # (1)\n"
                "        layer_norm, precision.layer_norm, x, *parameters.norm1, eps=norm_eps,\n"
                '        wanted=wanted(norm1_trained, "scale", "shift", x=wants_x),\n'
                "    )  # fmt: skip",
                "a = x",
            ),
            Change(_FORWARD, "r = x + dropped", "r, norm1 = layer_norm.forward(x + dropped, *parameters.norm1)"),
        ),
    ),
    Bug(
        "residual_in_place",
        "the residual is added into the block's input",
        "nanoGPT#72",
        "recomputed.d_trf_blocks.1.ff.layers.0",
        ("purity", "recomputation"),
        (Change(_FORWARD, "r = x + dropped", "x += dropped\n    r = x"),),
    ),
)

RECORD = Record(transformer_block, draw, SPECIAL, complex_step, BUGS)
