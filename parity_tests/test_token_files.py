"""Files of token ids: what is written in pieces, on several processes, is what the whole text gives."""

import gzip
import re
import resource

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from numpygpt import InputError, get_tokenizer
from numpygpt.data import tokenizing
from numpygpt.data.shipped import shipped
from numpygpt.data.texts import read_text, split_text
from numpygpt.data.token_file import dtype_of, open_tokens, validation_path
from parity_tests.command import files, python, run

GPT2 = get_tokenizer("gpt2")
STORY = read_text(shipped("the-verdict.txt"))
#: Letters, digits, signs, contractions, white space of several kinds, and \x1c, which is none for the tokenizer.
ALPHABET = "ab1.'s \n\t\r\u00a0\u2003\x1c\x85é中"


@given(parts=st.lists(st.text(ALPHABET, max_size=9), max_size=9))
@example(parts=["a", "\x1cb", " \x1c c"])
@example(parts=["a  ", "  b", "\n\n", "it's", " 's"])
def test_pieces_give_the_ids_of_the_whole_text(parts):
    text = "".join(parts)
    found = list(tokenizing.pieces(parts))
    assert "".join(found) == text
    assert [token for piece in found for token in GPT2.encode(piece)] == GPT2.encode(text)


def test_white_space_is_what_the_pattern_means_by_it():
    import regex

    for character in map(chr, range(0x3100)):
        assert (character in tokenizing.WHITE_SPACE) == bool(regex.fullmatch(r"\s", character)), repr(character)


@pytest.mark.parametrize("read_at_once", [1, 2, 7, 1000])
def test_files_are_read_as_one_text_whatever_is_read_at_once(monkeypatch, tmp_path, read_at_once):
    monkeypatch.setattr(tokenizing, "READ_AT_ONCE", read_at_once)
    paths = [tmp_path / "a.txt", tmp_path / "b.txt.gz", tmp_path / "c.txt"]
    paths[0].write_bytes("né\r\n中\r".encode())
    paths[1].write_bytes(gzip.compress(b"\nzip\r\r\n"))
    paths[2].write_bytes(b"end\r")
    read = []
    assert "".join(tokenizing.characters(paths, read.append)) == read_text(paths)
    assert sum(read) <= sum(path.stat().st_size for path in paths)


def test_the_files_of_the_command_are_the_two_parts_of_the_text(capsys, monkeypatch, tmp_path):
    """In pieces of some 100 characters, on two processes."""
    monkeypatch.setattr(tokenizing, "READ_AT_ONCE", 100)
    (tmp_path / "a.txt").write_text(STORY[:9999], encoding="utf-8")
    (tmp_path / "b.txt").write_text(STORY[9999:] + "<|endoftext|>", encoding="utf-8")
    out = tmp_path / "tokens.bin"
    assert run("tokenize", tmp_path / "a.txt", tmp_path / "b.txt", "--out", out, "--processes", 2) == 0
    printed = capsys.readouterr().out
    for part, path in zip(split_text(STORY + "<|endoftext|>"), (out, tmp_path / "tokens.val.bin"), strict=True):
        expected = GPT2.encode(part, allowed_special="all")
        assert np.fromfile(path, "<u2").tolist() == expected
        assert np.array_equal(open_tokens(path, 50257), expected)
        assert f"wrote {path}: {len(expected):,} ids of gpt2, uint16" in printed
    assert expected[-1] == GPT2.eot_token


def test_bytes_and_no_validation(tmp_path):
    (tmp_path / "text").write_text("né\n", encoding="utf-8")
    out = tmp_path / "tokens"
    options = ("--tokenizer", "bytes", "--validation", 0, "--processes", 1)
    assert run("tokenize", tmp_path / "text", "--out", out, *options) == 0
    assert open_tokens(out, 256).tolist() == list("né\n".encode())
    assert sorted(files(tmp_path)) == ["text", "tokens"]


def test_a_vocabulary_past_16_bits_takes_4_bytes(tmp_path):
    assert [dtype_of(size).itemsize for size in (256, 65536, 65537, 10**6)] == [2, 2, 4, 4]
    path = tmp_path / "tokens.bin"
    np.array([70_000, 3], "<u4").tofile(path)
    assert open_tokens(path, 70_001).tolist() == [70_000, 3]
    assert validation_path(path) == tmp_path / "tokens.val.bin"


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"", "has 0 bytes; expected a multiple of 2"),
        (b"abc", "has 3 bytes; expected a multiple of 2"),
        (np.array([1, 9, 10, 11], "<u2").tobytes(), "has id 10 at position 2; the model's vocabulary goes from 0 to 9"),
        (None, "No such file"),
    ],
)
def test_token_files_that_cannot_be_used(tmp_path, contents, said):
    path = tmp_path / "tokens.bin"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(InputError, match=re.escape(said)):
        open_tokens(path, 10)
    with pytest.raises(InputError, match="it is a pipe or a device"):
        open_tokens("/dev/zero", 10)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["{text}", "--out", "{there}"], "is already there"),
        (["{there}", "{text}", "--out", "{text}", "--overwrite"], "is one of the texts; name another --out"),
        (["{text}", "--out", "{tmp}/no/where"], "no/where"),
        (["{text}", "--out", "{out}", "--processes", "0"], "--processes is 0"),
        (["{text}", "--out", "{out}", "--validation", "1"], "--validation is 1.0"),
        (["{text}", "--out", "{out}", "--validation", "nan"], "--validation is nan"),
        (["{empty}", "--out", "{out}"], "the texts have 0 characters"),
        (["{tmp}/missing", "--out", "{out}"], "No such file"),
        (["{latin}", "--out", "{out}"], "is not UTF-8"),
        (["{cut}", "--out", "{out}"], "is not UTF-8"),
        (["{damaged}", "--out", "{out}"], "is damaged or not compressed"),
        (["/dev/zero", "--out", "{out}"], "it is a pipe or a device"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_all_as_it_was(capsys, tmp_path, options, said):
    contents = {
        "text": b"a text", "there": b"old", "empty": b"", "latin": b"\xe9a", "cut": "né".encode()[:-1],
        "damaged.gz": gzip.compress(b"text")[:-3],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    names = {name.removesuffix(".gz"): tmp_path / name for name in contents}
    given = [option.format(tmp=tmp_path, out=tmp_path / "new", **names) for option in options]
    before = files(tmp_path)
    assert run("tokenize", *given) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert files(tmp_path) == before


def test_a_disk_that_is_full_for_one_file_leaves_both_as_they_were(tmp_path):
    """The ids of the training part pass the limit, and those of the validation part do not."""
    out, text = tmp_path / "tokens.bin", tmp_path / "text.txt"
    text.write_text("word " * 40, encoding="utf-8")
    out.write_bytes(b"old")
    validation_path(out).write_bytes(b"older")
    before = files(tmp_path)
    done = python(
        *("-B", "-m", "numpygpt", "tokenize", text, "--tokenizer", "bytes", "--out", out, "--overwrite"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
    )
    assert (done.returncode, files(tmp_path)) == (2, before)
    assert "File too large" in done.stderr.splitlines()[-1]
