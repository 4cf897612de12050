"""The book's helpers of chapters 6 and 7, against the book's own lines on lists and tensors."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from numpygpt import (
    DataLoader,
    GPTConfig,
    GPTModel,
    InputError,
    InstructionDataset,
    SpamDataset,
    calc_loss_loader,
    create_balanced_dataset,
    custom_collate_fn,
    format_input,
    get_tokenizer,
    random_split,
)
from numpygpt.data.templates import TEMPLATES, Message

BYTES = get_tokenizer("bytes")
RECORDS = [
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {"instruction": "Say hello.", "input": "", "output": "Hello"},
    {"instruction": "No", "input": "", "output": "n"},
]


def in_torch(batch, pad, ignore, allowed):
    """What the book's function computes, row by row."""
    rows = []
    longest = max(len(item) + 1 for item in batch)
    for item in batch:
        padded = [*item, pad] + [pad] * (longest - len(item) - 1)
        inputs, targets = torch.tensor(padded[:-1]), torch.tensor(padded[1:])
        ends = torch.nonzero(targets == pad).squeeze(1)
        targets[ends[1:]] = ignore
        rows.append((inputs[:allowed], targets[:allowed]))
    return [torch.stack(part).tolist() for part in zip(*rows, strict=True)]


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(0, 4),
    st.sampled_from([None, 1, 3, 9]),
)
def test_the_collate_function_is_the_books(batch, pad, allowed):
    inputs, targets = custom_collate_fn(batch, pad, -7, allowed)
    assert inputs.dtype == targets.dtype == np.int64
    assert [inputs.tolist(), targets.tolist()] == in_torch(batch, pad, -7, allowed)


def test_the_collate_function_on_the_books_own_example():
    inputs, targets = custom_collate_fn([[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]])
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, 50256, 50256, 50256], [7, 8, 9, 50256, 50256]]
    assert targets.tolist() == [
        [1, 2, 3, 4, 50256], [6, 50256, -100, -100, -100], [8, 9, 50256, -100, -100]
    ]  # fmt: skip


def test_a_prompt_is_that_of_the_book():
    below = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    assert format_input(RECORDS[0]) == f"{below}\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2"
    assert format_input(RECORDS[1]) == f"{below}\n\n### Instruction:\nSay hello."


def test_instructions_are_batches_of_a_loader_and_train():
    dataset = InstructionDataset(RECORDS, BYTES)
    assert BYTES.decode(dataset[1]) == f"{format_input(RECORDS[1])}\n\n### Response:\nHello"

    def collate(batch):
        return custom_collate_fn(batch, pad_token_id=10, allowed_max_length=20)

    loader = DataLoader(dataset, 2, collate_fn=collate)
    assert [inputs.shape for inputs, _ in loader] == [(2, 20), (1, 20)]
    config = GPTConfig(256, context_length=20, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.0, qkv_bias=False)
    assert calc_loss_loader(loader, GPTModel(config)) > 0
    with pytest.raises(InputError, match="a InstructionDataset has items, and no batches; expected a collate_fn"):
        DataLoader(dataset, 2)


def test_the_books_records_have_the_tokens_of_the_template():
    folder = os.environ.get("NUMPYGPT_DATA")
    if folder is None:
        pytest.skip("NUMPYGPT_DATA does not name the folder with the records of the book's chapter 7")
    records = json.loads((Path(folder) / "instruction-data.json").read_text(encoding="utf-8"))[::10]
    tokenizer = get_tokenizer("gpt2")
    dataset, alpaca = InstructionDataset(records, tokenizer), TEMPLATES["alpaca"]
    for record, theirs in zip(records, dataset, strict=False):
        more = f"{alpaca.input}{record['input']}" if record["input"] else ""
        messages = [Message("user", record["instruction"] + more), Message("assistant", record["output"])]
        assert alpaca.encode(messages, tokenizer).token_ids.tolist() == [*theirs, tokenizer.eot_token]


# Chapter 6


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["Label", "Text"], *rows])
    return path


def test_spam_is_padded_to_the_longest_or_to_a_length(tmp_path):
    path = write_csv(tmp_path / "train.csv", [[0, 'a, "b"\nc'], [1, "dé"], [1, "x"]])
    dataset = SpamDataset(path, BYTES, pad_token_id=7)
    assert dataset.max_length == 8
    assert (dataset.encoded_texts.dtype, dataset.labels.dtype) == (np.int64, np.int64)
    assert dataset[0][0].tolist() == list(b'a, "b"\nc')
    assert dataset[1][0].tolist() == [*"dé".encode(), 7, 7, 7, 7, 7]
    inputs, labels = next(iter(DataLoader(SpamDataset(str(path), BYTES, 2, 7), 3)))
    assert inputs.tolist() == [list(b"a,"), list("dé".encode()[:2]), [ord("x"), 7]]
    assert labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ("Label,Body\n0,x\n", "the first line of .* names the columns label, body; expected Text and Label"),
        ("Label,Text\n0,x\n2,y\n", "line 3 of .*: the field label is '2'; expected a number from 0 to 1"),
        ("Label,Text\n0,\n", "line 2 of .*: the field text is ''; expected a text"),
        ("Label,Text\n0,x,y\n", "line 2 of .* has 3 columns; expected 2"),
        ('Label,Text\n0,"x"y\n', "line 2 of .* is not as in a CSV file"),
        ("Label,Text\n", "has no record"),
    ],
)
def test_a_bad_table_of_spam_gets_one_line(contents, said, tmp_path):
    (tmp_path / "train.csv").write_text(contents, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        SpamDataset(tmp_path / "train.csv", BYTES)


def test_rows_are_balanced_and_split_in_the_order_of_pandas():
    """pandas draws `sample(random_state=123)` with NumPy's RandomState(123); these are its first choices of ten."""
    records = [{"Label": "ham" if number < 10 else "spam", "Text": str(number)} for number in range(13)]
    balanced = create_balanced_dataset(records)
    assert [record["Text"] for record in balanced] == ["4", "0", "7", "10", "11", "12"]
    parts = random_split(records[:10], 0.7, 0.1)
    assert list(map(len, parts)) == [7, 1, 2]
    order = [int(record["Text"]) for part in parts for record in part]
    assert order == np.random.RandomState(123).choice(10, 10, replace=False).tolist()
    with pytest.raises(InputError, match="there are 1 records of ham and 3 of spam"):
        create_balanced_dataset(records[9:])
