"""Tokenizers: the 256 bytes, GPT-2's from a file of ranks, and the book's two functions for text."""

import os
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from numpygpt.data.tokenizer import get_tokenizer, text_to_token_ids, token_ids_to_text
from numpygpt.errors import InputError

DATA = Path(os.environ.get("NUMPYGPT_DATA", "no-folder"))
needs_gpt2_ranks = pytest.mark.skipif(
    not (DATA / "gpt2.tiktoken").exists(), reason="NUMPYGPT_DATA names no folder that holds gpt2.tiktoken"
)

BYTES = get_tokenizer("bytes")
gpt2_made_once = cache(lambda: get_tokenizer("gpt2"))


@pytest.fixture
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> None:
        raise ConnectionError(f"{name} cannot be downloaded")

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)


# The bytes


@given(st.text())
def test_bytes_are_the_utf8_bytes(text):
    ids = text_to_token_ids(text, BYTES)
    assert ids.dtype == np.int64
    assert ids.tolist() == [list(text.encode())]
    assert token_ids_to_text(ids, BYTES) == text


@given(st.binary())
def test_any_bytes_decode_with_replacement_characters(data):
    assert token_ids_to_text(list(data), BYTES) == data.decode(errors="replace")


def test_bytes_have_256_ids_and_no_special_token():
    assert BYTES.n_vocab == 256
    assert BYTES.special_tokens_set == set()
    assert text_to_token_ids("<|endoftext|>", BYTES).tolist() == [list(b"<|endoftext|>")]


# GPT-2


@needs_gpt2_ranks
def test_gpt2_from_the_data_folder_needs_no_network(without_network):
    tokenizer = get_tokenizer("gpt2")
    assert tokenizer.n_vocab == 50257
    assert tokenizer.eot_token == 50256
    ids = text_to_token_ids("Every effort moves you<|endoftext|>", tokenizer)
    assert ids.tolist() == [[6109, 3626, 6100, 345, 50256]]
    assert token_ids_to_text(ids[0], tokenizer) == "Every effort moves you<|endoftext|>"


@needs_gpt2_ranks
@given(text=st.text(max_size=60))
def test_gpt2_text_comes_back(text):
    tokenizer = gpt2_made_once()
    assert token_ids_to_text(text_to_token_ids(text, tokenizer), tokenizer) == text


@needs_gpt2_ranks
def test_a_named_ranks_file_wins(tmp_path, monkeypatch, without_network):
    shutil.copy(DATA / "gpt2.tiktoken", tmp_path / "ranks.txt")
    monkeypatch.setenv("NUMPYGPT_DATA", str(tmp_path / "elsewhere"))
    assert get_tokenizer("gpt2", vocab=tmp_path / "ranks.txt").encode("Every") == [6109]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path for damaged copies of the ranks, one after the other."""
    return tmp_path_factory.mktemp("ranks") / "gpt2.tiktoken"


@needs_gpt2_ranks
@given(position=st.integers(0, 835_553), bit=st.integers(0, 7), length=st.integers(0, 835_553))
def test_damaged_ranks_are_refused(damaged, position, bit, length):
    whole = (DATA / "gpt2.tiktoken").read_bytes()
    flipped = bytearray(whole)
    flipped[position] ^= 1 << bit
    for contents in (bytes(flipped), whole[:length]):
        damaged.write_bytes(contents)
        with pytest.raises(InputError, match=r"is damaged or another file.*sha256.*fetch https://"):
            get_tokenizer("gpt2", vocab=damaged)


def test_without_network_or_file_the_error_says_how_to_supply_it(monkeypatch, without_network):
    monkeypatch.delenv("NUMPYGPT_DATA", raising=False)
    with pytest.raises(InputError, match=r"ConnectionError.*save it as gpt2\.tiktoken and set NUMPYGPT_DATA"):
        get_tokenizer("gpt2")


def test_a_data_folder_without_ranks_falls_back_to_tiktoken(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMPYGPT_DATA", str(tmp_path))
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: BYTES if name == "gpt2" else None)
    assert get_tokenizer("gpt2") is BYTES


@pytest.mark.parametrize(("name", "reason"), [("missing", "No such file"), (".", "Is a directory")])
def test_an_unreadable_ranks_file_is_named(tmp_path, name, reason):
    with pytest.raises(InputError, match=f"cannot read GPT-2's vocabulary {tmp_path}.*{reason}"):
        get_tokenizer("gpt2", vocab=tmp_path / name)


# Other bad input


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match="'gpt5' is unknown; expected one of: bytes, gpt2"):
        get_tokenizer("gpt5")


def test_bytes_take_no_vocabulary():
    with pytest.raises(InputError, match="'bytes' takes no vocabulary file"):
        get_tokenizer("bytes", vocab="gpt2.tiktoken")


@pytest.mark.parametrize("token_ids", [[], np.zeros((1, 0), np.int64), np.zeros(0)])
def test_no_ids_are_no_text(token_ids):
    assert token_ids_to_text(token_ids, BYTES) == ""


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([256], "token id 256 is outside the vocabulary of tokenizer 'bytes'; expected ids from 0 to 255"),
        ([104, -1], "token id -1 is outside"),
        (np.zeros((2, 3), np.int64), r"shape \(2, 3\); expected one sequence"),
        (np.zeros((1, 1, 3), np.int64), r"shape \(1, 1, 3\); expected one sequence"),
        (np.array([104.0]), "dtype float64; expected integers"),
    ],
)
def test_ids_that_cannot_be_decoded_are_refused(token_ids, message):
    with pytest.raises(InputError, match=message):
        token_ids_to_text(token_ids, BYTES)
