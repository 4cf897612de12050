"""Data: windows as the book cuts them, batches as PyTorch's DataLoader draws them, epochs that resume."""

import copy
import gzip
import json
import os
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from numpygpt.data import shipped as shipped_module
from numpygpt.data.loader import DataLoader, create_dataloader_v1
from numpygpt.data.story import find_verdict
from numpygpt.data.texts import python_reference_text, read_text, split_text
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.data.windows import GPTDatasetV1
from numpygpt.errors import InputError
from numpygpt.random.torch_generator import TorchGenerator

BYTES = get_tokenizer("bytes")
TEXT = "No one had ever lingered in the hall quite as long as the cat, who owned it."


def as_lists(batches):
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in batches]


# Windows


@given(st.text(min_size=2, max_size=60), st.integers(1, 20), st.integers(1, 25))
def test_windows_are_those_of_the_book(text, max_length, stride):
    token_ids = list(text.encode())
    starts = range(0, len(token_ids) - max_length, stride)
    if not starts:
        message = f"the text has {len(token_ids)} tokens; expected at least {max_length + 1}"
        with pytest.raises(InputError, match=message):
            GPTDatasetV1(text, BYTES, max_length, stride)
        return
    dataset = GPTDatasetV1(text, BYTES, max_length, stride)
    assert dataset.input_ids.tolist() == [token_ids[i : i + max_length] for i in starts]
    assert dataset.target_ids.tolist() == [token_ids[i + 1 : i + max_length + 1] for i in starts]
    inputs, targets = dataset[len(starts) - 1]
    assert inputs.tolist() == dataset.input_ids[-1].tolist()
    assert targets.tolist() == dataset.target_ids[-1].tolist()


def test_windows_are_read_only_views_of_one_array():
    dataset = GPTDatasetV1(TEXT, BYTES, 9, 1)
    assert np.shares_memory(dataset.input_ids, dataset.target_ids)
    with pytest.raises(ValueError, match="read-only"):
        dataset.input_ids[0, 0] = 1


def test_the_book_figures():
    tokenizer = get_tokenizer("gpt2")
    text = read_text(find_verdict())
    assert (len(text), len(tokenizer.encode(text))) == (20479, 5145)
    train, validation = split_text(text)
    sizes = {"batch_size": 2, "max_length": 256, "stride": 256, "tokenizer": tokenizer}
    train_loader = create_dataloader_v1(train, **sizes, shuffle=True, drop_last=True, rng=123)
    val_loader = create_dataloader_v1(validation, **sizes, shuffle=False, drop_last=False)
    assert [inputs.shape for inputs, _ in train_loader] == [(2, 256)] * 9
    assert [targets.shape for _, targets in val_loader] == [(2, 256)]


# Batches


class TorchDataset(torch.utils.data.Dataset):
    def __init__(self, dataset):
        self.windows = [tuple(map(torch.tensor, dataset[i])) for i in range(len(dataset))]

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, i):
        return self.windows[i]


@given(
    seed=st.integers(0, 2**63 - 1),
    windows=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    batches_taken=st.lists(st.integers(1, 100), min_size=1, max_size=4),
)
def test_batches_and_draws_are_those_of_torch(seed, windows, batch_size, shuffle, drop_last, batches_taken):
    """There are several epochs, some of which end early. After each, both generators are in the same state."""
    dataset = GPTDatasetV1((TEXT * 2)[: windows + 3], BYTES, max_length=3, stride=1)
    if drop_last and windows < batch_size:
        with pytest.raises(InputError, match=f"{windows} windows make no batch of {batch_size}"):
            DataLoader(dataset, batch_size, drop_last=drop_last)
        return
    rng = TorchGenerator(seed)
    loader = DataLoader(dataset, batch_size, shuffle=shuffle, drop_last=drop_last, rng=rng)
    torch.manual_seed(seed)
    torch_loader = torch.utils.data.DataLoader(TorchDataset(dataset), batch_size, shuffle=shuffle, drop_last=drop_last)
    assert len(loader) == len(torch_loader)
    for taken in batches_taken:
        ours = as_lists(batch for _, batch in zip(range(taken), loader, strict=False))
        theirs = as_lists(batch for _, batch in zip(range(taken), torch_loader, strict=False))
        assert ours == theirs
        assert rng.random(5).tolist() == torch.rand(5, dtype=torch.float64).tolist()


def test_draws_happen_when_torch_makes_them():
    """Two epochs are interleaved: iter() draws the first seed, and the first next() draws the seed of the order."""
    dataset = GPTDatasetV1(TEXT, BYTES, max_length=4, stride=2)
    loader = DataLoader(dataset, 5, shuffle=True, rng=TorchGenerator(7))
    torch.manual_seed(7)
    torch_loader = torch.utils.data.DataLoader(TorchDataset(dataset), 5, shuffle=True)
    first, second = iter(loader), iter(loader)
    torch_first, torch_second = iter(torch_loader), iter(torch_loader)
    assert as_lists([next(second)]) == as_lists([next(torch_second)])
    assert as_lists(first) == as_lists(torch_first)
    assert as_lists(second) == as_lists(torch_second)


def test_batches_are_new_int64_arrays():
    loader = create_dataloader_v1(TEXT, 3, 5, 2, shuffle=False, tokenizer=BYTES)
    before = as_lists(loader)
    for inputs, targets in loader:
        assert inputs.dtype == targets.dtype == np.int64
        assert inputs.shape == targets.shape == (3, 5)
        inputs[...] = targets[...] = 0
    assert as_lists(loader) == before


def test_the_generator_may_be_a_seed_or_left_out():
    def orders(rng):
        loader = create_dataloader_v1(TEXT, 2, 4, 3, tokenizer=BYTES, rng=rng)
        return [as_lists(loader) for _ in range(2)]

    assert orders(5) == orders(TorchGenerator(5))
    assert orders(5)[0] != orders(5)[1]
    assert orders(None) != orders(None)


def test_gpt2_is_the_default_tokenizer(monkeypatch):
    monkeypatch.setattr("numpygpt.data.loader.get_tokenizer", lambda name: BYTES if name == "gpt2" else None)
    assert len(create_dataloader_v1(TEXT * 10)) > 0


# Resume


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_resumes_after_any_batch(shuffle):
    """The remaining batches are the same, and so is everything that the generator draws later."""
    dataset = GPTDatasetV1(TEXT, BYTES, max_length=6, stride=3)
    rng = TorchGenerator(11)
    loader = DataLoader(dataset, 4, shuffle=shuffle, rng=rng)
    for done in range(len(loader) + 1):
        epoch = iter(loader)
        for _ in range(done):
            next(epoch)
        position = json.loads(json.dumps(epoch.position))
        rng_at_save = copy.deepcopy(rng)
        resumed_loader = DataLoader(dataset, 4, shuffle=shuffle, rng=rng_at_save)
        resumed = resumed_loader.resume(position)
        assert len(resumed) == len(epoch) == len(loader) - done
        assert as_lists(resumed) == as_lists(epoch)
        assert as_lists(resumed_loader) == as_lists(loader)


@pytest.mark.parametrize(
    ("shuffle", "order_seed", "batches_done"),
    [(True, None, 2), (True, 5, 0), (False, 5, 2), (True, 5, 4), (True, 5, -1)],
)
def test_positions_of_another_loader_are_refused(shuffle, order_seed, batches_done):
    loader = DataLoader(GPTDatasetV1(TEXT[:14], BYTES, 2, 1), 4, shuffle=shuffle)
    assert len(loader) == 3
    with pytest.raises(InputError, match=f"batches_done {batches_done} are no position in 3 batches"):
        loader.resume({"order_seed": order_seed, "batches_done": batches_done})


# Text


def test_the_python_reference_is_long_english_prose():
    text = python_reference_text()
    assert len(text) > 400_000
    assert text == python_reference_text()
    assert text.count(" the ") > 2_000


def test_a_python_without_its_reference_is_told_to_give_a_text(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match=r"pydoc_data\.topics.*--text FILE"):
        python_reference_text()


def test_files_are_joined_in_the_order_given(tmp_path):
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("é one\n", encoding="utf-8")
    second.write_text("two", encoding="utf-8")
    assert read_text(first) == read_text(str(first)) == "é one\n"
    assert read_text([second, first]) == "twoé one\n"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "cannot read the text file .*text.txt: No such file"),
        (b"", "the text file .*text.txt is empty"),
        (b"caf\xe9 noir", "text.txt is not UTF-8: found byte 0xe9 at offset 3"),
    ],
)
def test_files_that_hold_no_text_are_named(tmp_path, contents, message):
    good, bad = tmp_path / "good.txt", tmp_path / "text.txt"
    good.write_text("good", encoding="utf-8")
    if contents is not None:
        bad.write_bytes(contents)
    with pytest.raises(InputError, match=message):
        read_text([good, bad])


def test_a_folder_and_an_empty_list_are_no_text(tmp_path):
    with pytest.raises(InputError, match=f"cannot read the text file {tmp_path}: Is a directory"):
        read_text(tmp_path)
    with pytest.raises(InputError, match="no text file was given"):
        read_text([])


def test_a_compressed_text_is_unpacked_and_line_ends_are_one(tmp_path):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress("é\r\n\rtwo\n".encode()))
    assert read_text(path) == "é\n\ntwo\n"
    for contents in (b"two", path.read_bytes()[:-3], path.read_bytes()[:12] + b"\xff" * 9):
        path.write_bytes(contents)
        with pytest.raises(InputError, match=r"the text file .*text\.gz is damaged or not compressed with gzip: "):
            read_text(path)


def test_a_text_that_unpacks_to_a_thousand_times_its_size_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped_module, "ALWAYS_UNPACKED", 2**20)
    monkeypatch.setattr(shipped_module, "PIECE", 2**16)
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(bytes(2**24), 9))
    limit = shipped_module.MOST_TIMES * path.stat().st_size
    tracemalloc.start()
    with pytest.raises(InputError, match=rf"^the text file .* has \d+ bytes and unpacks to more than {limit}, .*; if"):
        read_text(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23, "less than half of the text"
    path.write_bytes(gzip.compress(b"a" * 2**20, 9))
    assert len(read_text(path)) == 2**20, "little memory is spent on any text"


def test_a_story_that_is_longer_is_not_unpacked(tmp_path):
    path = tmp_path / "story.gz"
    story = gzip.decompress(find_verdict().read_bytes())
    path.write_bytes(gzip.compress(story))
    assert find_verdict(path) == path
    path.write_bytes(gzip.compress(story + b"."))
    with pytest.raises(InputError, match=r"the story .* unpacks to more than 20479 bytes; such a file has fewer; name"):
        find_verdict(path)
    longer = tmp_path / "story.txt"
    longer.write_bytes(story + b".")
    with pytest.raises(InputError, match=r"cannot read the story .*: it has more than 20479 bytes"):
        find_verdict(longer)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "pipe"])
def test_what_might_never_end_is_no_text(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(InputError, match=f"cannot read the text file {path}: it is a pipe or a device; give a regular"):
        read_text(path)


def test_a_name_too_long_is_told():
    with pytest.raises(InputError, match=r"cannot read the text file x{300}: File name too long"):
        read_text("x" * 300)


# The story of the book's chapter 5


def test_the_story_ships_and_a_file_of_it_may_be_named(tmp_path):
    story = gzip.decompress(find_verdict().read_bytes())
    named = tmp_path / "story.txt"
    named.write_bytes(story)
    assert find_verdict(named) == find_verdict(str(named)) == named
    assert read_text(named) == read_text(find_verdict())
    named.write_bytes(story.replace(b"cheap", b"great"))
    with pytest.raises(InputError, match=r"the story .*story\.txt is damaged or another file.*; name no file, and the"):
        find_verdict(named)
    with pytest.raises(InputError, match=r"cannot read the story .*nowhere: No such file"):
        find_verdict(tmp_path / "nowhere")


def test_a_story_that_ships_damaged_says_install_again(tmp_path, monkeypatch):
    damaged = tmp_path / "the-verdict.txt.gz"
    damaged.write_bytes(gzip.compress(b"another"))
    monkeypatch.setattr("numpygpt.data.shipped.shipped", lambda name: damaged)
    with pytest.raises(InputError, match=r"expected b41e41a6.*; install numpygpt again"):
        find_verdict()


@given(st.text(), st.floats(-0.5, 1.5))
def test_a_split_is_whole_and_has_two_parts(text, train_ratio):
    try:
        train, validation = split_text(text, train_ratio)
    except InputError:
        assert not 0 < train_ratio < 1 or int(train_ratio * len(text)) in (0, len(text))
    else:
        assert train + validation == text
        assert len(train) == int(train_ratio * len(text))
        assert train
        assert validation


# Bad sizes


@pytest.mark.parametrize("name", ["batch_size", "max_length", "stride"])
@pytest.mark.parametrize("size", [0, -3])
def test_sizes_must_be_positive(name, size):
    sizes = {"batch_size": 2, "max_length": 4, "stride": 3, name: size}
    with pytest.raises(InputError, match=f"{name} is {size}; expected a positive integer"):
        create_dataloader_v1(TEXT, **sizes, tokenizer=BYTES)
