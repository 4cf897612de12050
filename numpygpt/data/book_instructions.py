"""The book's functions for instruction records (chapter 7) and for spam (chapter 6), under their names.

Batches are NumPy arrays. There is no device argument. A table is a list of records, dicts, in the place of a pandas
DataFrame; its rows are drawn in the order in which pandas draws them.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from numpygpt.data.tokenizer import Encoding
from numpygpt.errors import InputError
from numpygpt.shapes import IGNORE_INDEX, Array, Integer

#: Of GPT-2's tokenizer: <|endoftext|>.
PAD_TOKEN_ID = 50256
#: The classes of the book's chapter 6 by their numbers.
HAM_AND_SPAM = ("ham", "spam")
#: The seed by which the book draws rows.
SEED = 123

Record = Mapping[str, Any]


# Chapter 7: instructions


def format_input(entry: Record) -> str:
    """The prompt of a record with "instruction" and "input", in Alpaca's form, up to the header of the answer."""
    instruction_text = (
        f"Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return instruction_text + input_text


class InstructionDataset:
    """The token ids of each record's prompt and answer, as lists. `DataLoader` takes it with a collate_fn."""

    unit = "records"

    def __init__(self, data: Sequence[Record], tokenizer: Encoding) -> None:
        self.data = data
        self.encoded_texts = [
            tokenizer.encode(f"{format_input(entry)}\n\n### Response:\n{entry['output']}") for entry in data
        ]

    def __getitem__(self, index: int) -> list[int]:
        return self.encoded_texts[index]

    def __len__(self) -> int:
        return len(self.data)


def custom_collate_fn(
    batch: Sequence[Sequence[int]],
    pad_token_id: int = PAD_TOKEN_ID,
    ignore_index: int = IGNORE_INDEX,
    allowed_max_length: int | None = None,
) -> tuple[Integer[Array, "B T"], Integer[Array, "B T"]]:
    """Inputs and targets, int64, of texts with padding on the right.

    One padding token ends each text and is its last target. Of a text's targets that are the padding token, all but the
    first become ignore_index. Rows are cut off after `allowed_max_length` tokens.
    """
    T = max(map(len, batch))
    padded = np.full((len(batch), T + 1), pad_token_id, np.int64)
    for row, item in zip(padded, batch, strict=True):
        row[: len(item)] = item
    inputs, targets = padded[:, :-1].copy(), padded[:, 1:].copy()
    is_padding = targets == pad_token_id
    targets[is_padding & (np.cumsum(is_padding, axis=1) > 1)] = ignore_index
    return inputs[:, :allowed_max_length], targets[:, :allowed_max_length]


# Chapter 6: spam


def create_balanced_dataset(records: Sequence[Record]) -> list[Record]:
    """As many records whose "Label" is "ham", drawn at random, as there are with "spam", and then these.

    Raises InputError for fewer "ham" than "spam".
    """
    spam = [record for record in records if record["Label"] == "spam"]
    ham = [record for record in records if record["Label"] == "ham"]
    if len(ham) < len(spam):
        raise InputError(f"there are {len(ham)} records of ham and {len(spam)} of spam; expected at least as many ham")
    return [*_drawn(ham)[: len(spam)], *spam]


def random_split(
    records: Sequence[Record], train_frac: float, validation_frac: float
) -> tuple[list[Record], list[Record], list[Record]]:
    """The records in a random order, in three parts: for training, for validation, and the rest for a test."""
    shuffled = _drawn(records)
    train_end = int(len(shuffled) * train_frac)
    validation_end = train_end + int(len(shuffled) * validation_frac)
    return shuffled[:train_end], shuffled[train_end:validation_end], shuffled[validation_end:]


def _drawn(records: Sequence[Record]) -> list[Record]:
    """All records in the order of pandas' `sample(random_state=123)`, which is that of NumPy's earlier generator."""
    order = np.random.RandomState(SEED).permutation(len(records))
    return [records[number] for number in order]


class SpamDataset:
    """The texts of a CSV file with the columns Label, 0 or 1, and Text: token ids of one length, and labels.

    max_length     texts are cut off or padded to it; None: to the length of the longest
    pad_token_id   the padding on the right

    `DataLoader` takes it, and gives token ids (B, max_length) and labels (B), both int64. Raises InputError for a file
    that cannot be read, and, with its line, for a row without a text or with another label.
    """

    unit = "texts"

    def __init__(
        self,
        csv_file: str | os.PathLike[str],
        tokenizer: Encoding,
        max_length: int | None = None,
        pad_token_id: int = PAD_TOKEN_ID,
    ) -> None:
        from numpygpt.data.labels import label_of, records_of_columns
        from numpygpt.data.records import text_of

        path = Path(csv_file)
        found = list(records_of_columns(path))
        texts = [tokenizer.encode(text_of(record, "text", place)) for place, record in found]
        self.labels = np.array([label_of(record, place, HAM_AND_SPAM) for place, record in found])
        self.max_length = max(map(len, texts)) if max_length is None else max_length
        self.encoded_texts = np.full((len(texts), self.max_length), pad_token_id, np.int64)
        for row, text in zip(self.encoded_texts, texts, strict=True):
            row[: len(text)] = text[: self.max_length]

    def __getitem__(self, index: int) -> tuple[Integer[Array, "T"], Any]:
        """A text's token ids (max_length,), and its label."""
        return self.encoded_texts[index], self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, numbers: Integer[Array, "B"]) -> tuple[Integer[Array, "B T"], Integer[Array, "B"]]:
        """The texts of these numbers."""
        return self.encoded_texts[numbers], self.labels[numbers]
