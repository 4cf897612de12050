"""`examples`: real mistakes in the mask of what is learned."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.data import examples

_TARGETS = "data.examples:following"

BUGS = (
    Bug(
        "prompts_learned",
        "the tokens of prompts are learned, too",
        "trl#3728",
        "alpaca.targets",
        ("answers_learned", "targets_by_hand", "packed_as_alone"),
        (
            Change(_TARGETS, "np.where(counts[1:], token_ids[1:], IGNORE_INDEX)", "token_ids[1:]"),
        ),
    ),
    Bug(
        "answer_labels_not_shifted",
        "the target of an answer's token is the token itself",
        "llm_related#33",
        "alpaca.targets",
        ("answers_learned", "targets_by_hand", "padded_as_alone"),
        (
            Change(
                _TARGETS,
                "np.where(counts[1:], token_ids[1:], IGNORE_INDEX)",
                "np.where(counts[:-1], token_ids[:-1], IGNORE_INDEX)",
            ),
        ),
    ),
    Bug(
        "answer_mask_not_shifted",
        "the mask is that of the inputs, so the first token of an answer is not learned",
        "FastChat#3061",
        "alpaca.targets",
        ("answers_learned", "targets_by_hand", "packed_as_alone"),
        (
            Change(_TARGETS, "counts[1:]", "counts[:-1]"),
        ),
    ),
    Bug(
        "answer_mask_inverted",
        "the prompts are learned, and the answers are not",
        "CosyVoice#1449",
        "alpaca.targets",
        ("answers_learned", "targets_by_hand", "padded_as_alone"),
        (
            Change(_TARGETS, "counts[1:]", "~counts[1:]"),
        ),
    ),
)

RECORD = BugsOnly(examples, "it masks token ids, which have no gradient", BUGS)
