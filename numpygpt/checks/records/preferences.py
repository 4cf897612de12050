"""`preferences`: real mistakes in pairs of answers."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.data import preferences

BUGS = (
    Bug(
        "chosen_and_rejected_exchanged",
        "the rejected answer is taken for the chosen one",
        "trl#2578",
        "alpaca.chosen.token_ids",
        ("pairs_by_hand", "pairs_from_files"),
        (
            Change(
                "data.preferences:pair_of",
                "Pair(example(chosen), example(rejected))",
                "Pair(example(rejected), example(chosen))",
            ),
        ),
    ),
    Bug(
        "rejected_prompt_learned",
        "the answers in the prompt of the rejected answer count",
        "OpenRLHF#294",
        "alpaca.rejected.targets",
        ("pairs_by_hand", "pairs_from_files"),
        (
            Change(
                "data.preferences:pair_of",
                "learned[: len(prompt)] = False",
                "learned[: len(prompt)] &= answer is rejected",
            ),
        ),
    ),
    Bug(
        "alike_pairs_kept",
        "pairs whose answers are the same, perhaps because both were cut off, are kept",
        "OpenRLHF#1311",
        "pairs_of_a_file.alike",
        ("pairs_from_files",),
        (
            Change(
                "data.preferences:read_preferences",
                "if not np.array_equal(pair.chosen.token_ids, pair.rejected.token_ids)",
                "if pair.chosen.token_ids.size",
            ),
        ),
    ),
)

RECORD = BugsOnly(preferences, "it makes pairs of token ids, which have no gradient", BUGS)
