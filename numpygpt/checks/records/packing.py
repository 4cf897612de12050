"""`packing`: real mistakes in rows of several examples."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.data import packing

BUGS = (
    Bug(
        "packed_targets_rolled",
        "targets are rolled over the whole row, so the last token of an example has the next one's first as its target",
        "verl#5797",
        "rows.targets",
        ("packing_by_hand", "packed_as_alone"),
        (
            Change(
                "data.packing:packed",
                "return PackedBatch(inputs, targets,",
                "border = np.diff(document, append=-1) != 0\n"
                "    return PackedBatch(inputs, np.where(border, np.roll(inputs, -1, axis=1), targets),",
            ),
        ),
    ),
    Bug(
        "packed_positions_go_on",
        "positions do not begin again with each example",
        "nanoVLM#201",
        "rows.positions",
        ("packing_by_hand", "packed_as_alone"),
        (
            Change(
                "data.packing:packed",
                "np.arange(len(example.token_ids)), which",
                "np.arange(len(example.token_ids)) + start, which",
            ),
        ),
    ),
    Bug(
        "packed_attention_crosses",
        "a token sees the examples before its own",
        "trl#784",
        "rows.visible",
        ("packing_by_hand", "packed_as_alone"),
        (
            Change(
                "data.packing:_visible",
                "document[:, :, np.newaxis] == document[:, np.newaxis]",
                "document[:, :, np.newaxis] >= document[:, np.newaxis]",
            ),
        ),
    ),
)

RECORD = BugsOnly(packing, "it copies token ids, which have no gradient", BUGS)
