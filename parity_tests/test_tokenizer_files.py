"""Tokenizers in files: read as tiktoken's, and written for transformers."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, Tokenizer

from numpygpt.data.tokenizer import ENDOFTEXT, get_tokenizer
from numpygpt.errors import InputError
from numpygpt.formats.tokenizer_files import (
    MERGES,
    MOST_BYTES,
    SETTINGS,
    TOKENIZER,
    VOCABULARY,
    merges_of,
    named,
    read_tokenizer,
    read_vocabulary,
    write_tokenizer,
)
from parity_tests.command import TEXT

TEXTS = st.text() | st.text("the catsdog '\n12!é") | st.lists(st.sampled_from(TEXT.split()), min_size=1).map(" ".join)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder with GPT-2's tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2")
    write_tokenizer(folder, named("gpt2"), 1024)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a tokenizer that the library `tokenizers` made of a text, with two special tokens."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([TEXT], vocab_size=300, special_tokens=[ENDOFTEXT, "<pad>"], show_progress=False)
    tokenizer.save(str(folder / TOKENIZER))
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of it."""
    (tmp_path / TOKENIZER).write_bytes((trained / TOKENIZER).read_bytes())
    return tmp_path


def change(folder, edit):
    path = folder / TOKENIZER
    contents = json.loads(path.read_text(encoding="utf-8"))
    edit(contents)
    path.write_text(json.dumps(contents), encoding="utf-8")


def refusal(folder):
    read = read_tokenizer(folder)
    assert read.name is None
    with pytest.raises(InputError) as refused:
        read.own()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("left_out", [(), (TOKENIZER,), (VOCABULARY, MERGES)], ids=["all", "two files", "one file"])
def test_gpt2s_is_known(gpt2, tmp_path, left_out):
    for path in gpt2.iterdir():
        if path.name not in left_out:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert read_tokenizer(tmp_path) == ("gpt2", None)


def test_bytes_are_known(tmp_path):
    write_tokenizer(tmp_path, named("bytes"), 64)
    assert read_tokenizer(tmp_path) == ("bytes", None)
    assert json.loads((tmp_path / VOCABULARY).read_text(encoding="utf-8"))["Ġ"] == ord(" ")


def test_no_files_are_no_tokenizer(tmp_path):
    assert read_tokenizer(tmp_path) == (None, None)


def test_the_merges_make_gpt2s_tokens_in_their_order():
    ranks = named("gpt2").ranks
    merges = merges_of(ranks)
    assert [ranks[left + right] for left, right in merges] == list(range(256, 50256))
    assert all(max(ranks[left], ranks[right]) < ranks[left + right] for left, right in merges)


@given(text=TEXTS)
def test_what_is_written_for_gpt2_encodes_as_tiktoken_does(gpt2, text):
    theirs = _tokenizer(gpt2)
    ids = theirs.encode(text).ids
    assert ids == get_tokenizer("gpt2").encode(text, allowed_special="all")
    assert theirs.decode(ids, skip_special_tokens=False) == text


@given(text=TEXTS)
def test_another_vocabulary_encodes_as_the_library_tokenizers_does(trained, text):
    ours = read_tokenizer(trained).own()
    assert ours.encode(text, allowed_special="all") == _tokenizer(trained).encode(text).ids


def _tokenizer(folder, known={}):  # noqa: B006  GPT-2's takes half a second to read
    if folder not in known:
        known[folder] = Tokenizer.from_file(str(folder / TOKENIZER))
    return known[folder]


def test_special_tokens_in_a_text_are_tokens(trained):
    text = f"the cat{ENDOFTEXT}<pad>sat"
    ours = read_tokenizer(trained).own()
    assert ours.encode(text, allowed_special="all") == _tokenizer(trained).encode(text).ids
    assert ours.eot_token == 0
    assert ours.n_vocab == _tokenizer(trained).get_vocab_size()


def test_the_same_vocabulary_in_two_files(trained, tmp_path):
    contents = json.loads((trained / TOKENIZER).read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in contents["added_tokens"]}
    ids = contents["model"]["vocab"] | added
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in contents["model"]["merges"]]
    (tmp_path / VOCABULARY).write_text(json.dumps(ids), encoding="utf-8")
    (tmp_path / MERGES).write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    vocabulary = read_vocabulary(tmp_path / VOCABULARY, tmp_path / MERGES, added)
    assert vocabulary.special == added
    assert read_tokenizer(trained).own()._mergeable_ranks == vocabulary.ranks
    listed = {str(number): {"content": token} for token, number in added.items()}
    (tmp_path / SETTINGS).write_text(json.dumps({"added_tokens_decoder": listed}), encoding="utf-8")
    assert read_tokenizer(tmp_path).own().encode(TEXT) == _tokenizer(trained).encode(TEXT).ids


def swap_two_ids(contents):
    vocab = contents["model"]["vocab"]
    by_id = {number: token for token, number in vocab.items()}
    vocab[by_id[290]], vocab[by_id[291]] = 291, 290


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (swap_two_ids, "its ids do not follow its merges: .* has id 290, and .*, which is merged before, 291"),
        (lambda c: c["model"]["merges"].pop(), "it has 296 tokens, 256 of the 256 bytes among them, and 39 merges"),
        (lambda c: c["model"]["merges"].append("a b c"), "its merge \\['a', 'b', 'c'\\] is not of two tokens"),
        (lambda c: c["model"]["vocab"].update(zz=c["model"]["vocab"].pop("a")), "255 of the 256 bytes among them"),
        (lambda c: c["model"]["vocab"].update({"a": 5}), "its 298 ids are not 0 to 297, each once"),
        (lambda c: c["model"]["vocab"].update({"a": True}), "its 298 ids are not 0 to 297, each once"),
        (lambda c: c["model"]["vocab"].update({"a": -1}), "its 298 ids are not 0 to 297, each once"),
        (lambda c: c["model"]["vocab"].update({"a": 10**30}), "its 298 ids are not 0 to 297, each once"),
        (lambda c: c["model"]["vocab"].update({"a": "5"}), "its 298 ids are not 0 to 297, each once"),
        (lambda c: c["model"]["vocab"].update({"東": 298}), "has 297 tokens, 256 of the 256 bytes among them, and 40"),
        (lambda c: c["model"].update(type="WordPiece"), "its model.type is 'WordPiece'; expected 'BPE', as GPT-2's"),
        (lambda c: c["model"].update(vocab=[]), r"vocab is \[\]; expected dict"),
        (lambda c: c["model"].update(merges=5), "merges is 5; expected list"),
        (lambda c: c["model"].update(merges=[5]), "cannot be used: "),
        (lambda c: c.update(model=None), "model is None; expected dict"),
        (lambda c: c.update(added_tokens=[5]), "cannot be used: "),
        (lambda c: c.update(normalizer={"type": "NFC"}), "its normalizer is {'type': 'NFC'}; expected None"),
        (lambda c: c["pre_tokenizer"].update(add_prefix_space=True), "add_prefix_space is True; expected False"),
        (lambda c: c["pre_tokenizer"].update(use_regex=False), "use_regex is False; expected True"),
        (lambda c: c.update(post_processor=[5]), r"post_processor is \[5\]; expected dict or null"),
        (lambda c: c.update(post_processor={"type": "TemplateProcessing"}), "post_processor.type is 'Template"),
    ],
)
def test_what_tiktoken_cannot_do_is_told_in_a_line(folder, edit, message):
    """And only when the tokenizer is asked for, so that the model can be read."""
    change(folder, edit)
    assert re.search(message, refusal(folder))


@pytest.mark.parametrize("habit", ["add_prefix_space", "add_bos_token"])
def test_habits_that_change_a_text(folder, habit):
    (folder / SETTINGS).write_text(json.dumps({habit: True}))
    assert "asks for a space or a token before each text" in refusal(folder)


def test_files_that_are_too_large_or_deep(folder):
    (folder / TOKENIZER).write_bytes(b"{}" + b" " * MOST_BYTES)
    assert "it has more than" in refusal(folder)
    (folder / TOKENIZER).write_bytes(b"[" * 100_000)
    assert "is no JSON" in refusal(folder)
