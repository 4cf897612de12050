"""`batching`: real mistakes in padding."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.data import batching

BUGS = (
    Bug(
        "padding_learned",
        "the targets of padding count",
        "OpenJarvis#521",
        "examples.targets",
        ("padding_by_hand", "padded_as_alone"),
        (
            Change(
                "data.batching:padded",
                "np.full(shape, IGNORE_INDEX, np.int64)",
                "np.full(shape, pad_id, np.int64)",
            ),
        ),
    ),
    Bug(
        "end_masked_as_padding",
        "where the token that ends an answer is that of padding, too, the end is not learned",
        "trl#976",
        "examples.targets",
        ("padding_by_hand", "padded_as_alone"),
        (
            Change(
                "data.batching:padded",
                "TokenBatch(inputs, targets, lengths)",
                "TokenBatch(inputs, np.where(targets == pad_id, IGNORE_INDEX, targets), lengths)",
            ),
        ),
    ),
    Bug(
        "padding_classified",
        "a text is classified by its last position, which is padding",
        "transformers#16372",
        "examples.lengths",
        ("padding_by_hand", "classified_by_last_token"),
        (
            Change(
                "data.batching:padded",
                "TokenBatch(inputs, targets, lengths)",
                "TokenBatch(inputs, targets, np.full_like(lengths, shape[1]))",
            ),
        ),
    ),
    Bug(
        "lengths_by_first_padding",
        "a text ends before the first token that is that of padding",
        "transformers#35352",
        "examples.lengths",
        ("padding_by_hand", "classified_by_last_token"),
        (
            Change(
                "data.batching:padded",
                "return TokenBatch(inputs, targets, lengths)",
                "ends = inputs == pad_id\n"
                "    return TokenBatch(inputs, targets, np.where(ends.any(axis=1), ends.argmax(axis=1), lengths))",
            ),
        ),
    ),
    Bug(
        "halves_exchanged",
        "the rejected answers come first where the chosen ones are expected",
        "trl#2578",
        "pairs.inputs",
        ("pairs_in_batches", "pairs_from_files"),
        (
            Change(
                "data.batching:below",
                "zip(first, second, strict=True)",
                "zip(second, first, strict=True)",
            ),
        ),
    ),
)

RECORD = BugsOnly(batching, "it copies token ids, which have no gradient", BUGS)
