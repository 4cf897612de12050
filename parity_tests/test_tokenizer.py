"""Tokenizers: the 256 bytes, GPT-2's from shipped ranks or a file of ranks, and the book's functions for text."""

import gzip
import socket
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpygpt.data.shipped import shipped
from numpygpt.data.tokenizer import GPT2_RANKS_FILE, get_tokenizer, text_to_token_ids, token_ids_to_text
from numpygpt.errors import InputError

BYTES = get_tokenizer("bytes")
RANKS = gzip.decompress(shipped(GPT2_RANKS_FILE).read_bytes())
gpt2_made_once = cache(lambda: get_tokenizer("gpt2"))


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


def test_gpt2_needs_no_network_and_no_setting(monkeypatch):
    def no_network(*arguments):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.delenv("NUMPYGPT_DATA", raising=False)
    tokenizer = get_tokenizer("gpt2")
    assert tokenizer.n_vocab == 50257
    assert tokenizer.eot_token == 50256
    ids = text_to_token_ids("Every effort moves you<|endoftext|>", tokenizer)
    assert ids.tolist() == [[6109, 3626, 6100, 345, 50256]]
    assert token_ids_to_text(ids[0], tokenizer) == "Every effort moves you<|endoftext|>"


@given(text=st.text(max_size=60))
def test_gpt2_text_comes_back(text):
    tokenizer = gpt2_made_once()
    assert token_ids_to_text(text_to_token_ids(text, tokenizer), tokenizer) == text


@pytest.fixture(scope="module")
def ranks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path at which copies of the ranks are written, one after the other."""
    return tmp_path_factory.mktemp("ranks") / "ranks.txt"


def test_a_named_ranks_file_is_the_one_that_is_read(ranks_file, monkeypatch):
    """It may be compressed, and is read anew each time; tiktoken's loader would keep a copy and read that."""
    monkeypatch.setattr("numpygpt.data.shipped.shipped", None)  # cannot be called
    packed = ranks_file.with_name("ranks.gz")
    packed.write_bytes(gzip.compress(RANKS, compresslevel=1))
    ranks_file.write_bytes(RANKS)
    for path in (ranks_file, str(ranks_file), packed):
        assert get_tokenizer("gpt2", vocab=path).encode("Every") == [6109]
    ranks_file.write_bytes(RANKS[:-1])
    with pytest.raises(InputError, match="is damaged or another file"):
        get_tokenizer("gpt2", vocab=ranks_file)


def test_a_ranks_file_that_is_longer_is_not_read(ranks_file):
    packed = ranks_file.with_name("longer.gz")
    for path, contents in ((ranks_file, RANKS + b"\n"), (packed, gzip.compress(RANKS + bytes(2**24), 1))):
        path.write_bytes(contents)
        with pytest.raises(InputError, match="more than 835554 bytes; such a file has fewer; name no file, and"):
            get_tokenizer("gpt2", vocab=path)


@given(position=st.integers(0, len(RANKS) - 1), bit=st.integers(0, 7), length=st.integers(0, len(RANKS) - 1))
def test_damaged_ranks_are_refused(ranks_file, position, bit, length):
    flipped = bytearray(RANKS)
    flipped[position] ^= 1 << bit
    for contents in (bytes(flipped), RANKS[:length]):
        ranks_file.write_bytes(contents)
        with pytest.raises(InputError, match=r"is damaged or another file.*sha256.*name no file, and the one"):
            get_tokenizer("gpt2", vocab=ranks_file)


@pytest.mark.parametrize("contents", [b"no gzip", gzip.compress(RANKS[:500])[:-9], gzip.compress(RANKS[:-1], 1)])
def test_damaged_ranks_that_ship_say_install_again(tmp_path, monkeypatch, contents):
    damaged = tmp_path / "gpt2.tiktoken.gz"
    damaged.write_bytes(contents)
    monkeypatch.setattr("numpygpt.data.shipped.shipped", lambda name: damaged)
    with pytest.raises(InputError, match=r"GPT-2's ranks .*gpt2\.tiktoken\.gz is damaged.*; install numpygpt"):
        get_tokenizer("gpt2")


@pytest.mark.parametrize(("name", "reason"), [("missing", "No such file"), (".", "Is a directory")])
def test_an_unreadable_ranks_file_is_named(tmp_path, name, reason):
    with pytest.raises(InputError, match=f"cannot read the file of GPT-2's ranks {tmp_path}.*{reason}"):
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
