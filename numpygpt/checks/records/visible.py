"""`visible`: real mistakes in which keys a query may see."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.ops import visible

BUGS = (
    Bug(
        "mask_hides_own_position",
        "a position may not read itself, so the first reads nothing",
        "pytorch#41508",
        "trf_blocks.0.att.attn_scores",
        ("forward", "gradients"),
        (Change("ops.visible:hidden", "keys.stop) > past", "keys.stop) >= past"),),
    ),
    Bug(
        "all_seen_as_causal",
        "attention is causal although each position may see all",
        "transformers#36150",
        "all_seen.logits",
        ("causality", "masks"),
        (
            Change(
                "ops.visible:hidden",
                'if visible == "all":\n        return None\n    if visible != "causal":',
                'if visible not in ("all", "causal"):',
            ),
        ),
    ),
    Bug(
        "padding_is_seen",
        "a shorter prompt of a batch reads the padding before it",
        "transformers#3167",
        "padded.logits",
        ("padding", "decoding"),
        (
            Change("ops.visible:causal_from", "position >= starts[", "position >= 0 * starts["),
        ),
    ),
)

RECORD = BugsOnly(visible, "it makes the masks that attention is given", BUGS)
