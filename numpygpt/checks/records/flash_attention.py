"""`flash_attention`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.records import attention
from numpygpt.checks.source import Source
from numpygpt.ops import flash_attention

_FORWARD = "ops.flash_attention:forward"
_BACKWARD = "ops.flash_attention:backward"
_HIDDEN = "hidden(visible, t, s, past)"


def draw(source: Source) -> Call:
    """Draw a call of attention, in tiles of one token or more."""
    arguments, options = attention.draw(source)
    return Call(arguments, {**options, "tile": source.size(4)})


def complex_step(source: Source) -> Mapping[str, Call]:
    """Calls in tiles of a size that does not divide five tokens."""
    heads = attention.random_heads(source)
    return {
        what: Call(heads, {**options, "tile": tile})
        for tile, (what, options) in zip((2, 3, 2, 3), attention.ways(source).items(), strict=True)
    }


SPECIAL = {
    f"{what}, {tiles}": call
    for tile, tiles in ((1, "one token a tile"), (2, "tiles of 2"), (5, "one tile"))
    for what, call in attention.special_calls({"tile": tile}).items()
}

BUGS = (
    Bug(
        "flash_context_does_not_shrink",
        "a larger score comes, and what was read before keeps its old weight",
        "no public report known",
        "flash.context",
        ("tiles", "complex_step"),
        (Change(_FORWARD, "                a *= shrink\n", ""),),
    ),
    Bug(
        "flash_total_does_not_shrink",
        "a larger score comes, and the sum of the exponentials stays under the old one",
        "no public report known",
        "flash.context",
        ("tiles", "complex_step"),
        (Change(_FORWARD, "        total *= shrink\n", ""),),
    ),
    Bug(
        "flash_row_sum_of_a_tile",
        "the softmax's gradient subtracts the sum over a tile of keys, not over all of them",
        "no public report known",
        "flash.d_queries",
        ("tiles", "complex_step"),
        (Change(_BACKWARD, "d_scores -= g_dot_y", "d_scores -= (e * d_scores).sum(axis=-1, keepdims=True)"),),
    ),
    Bug(
        "flash_values_without_dropout",
        "the weights are formed again for the values' gradient, the mask is not applied again",
        "no public report known",
        "flash.d_values",
        ("tiles", "complex_step"),
        (Change(_BACKWARD, "_add_product(d_v, s, dropped.mT, g)", "_add_product(d_v, s, e.mT, g)"),),
    ),
    Bug(
        "flash_mask_from_the_upper_left",
        "fewer queries than keys, and the causal mask starts at the first key: what FlashAttention did before 2.1",
        "flash-attention, changelog of 2.1",
        "flash.context",
        ("tiles", "cache"),
        (Change(_FORWARD, _HIDDEN, "hidden(visible, t, s, 0)"),),
    ),
    Bug(
        "flash_ignores_the_mask",
        "a mask that is given is not applied",
        "pytorch#122753",
        "flash_masked.context",
        ("tiles", "masks"),
        (Change(_FORWARD, _HIDDEN, f"None if isinstance(visible, np.ndarray) else {_HIDDEN}"),),
    ),
    Bug(
        "flash_skips_a_tile_that_is_seen",
        "a tile is skipped in which some of the queries see some of the keys",
        "no public report known",
        "flash_masked.context",
        ("tiles", "masks"),
        (Change("ops.flash_attention:_tiles", "visible[:, :, t, s].any()", "visible[:, :, t, s].all()"),),
    ),
)

RECORD = Record(flash_attention, draw, SPECIAL, complex_step, BUGS)
