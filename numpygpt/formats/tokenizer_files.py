"""Tokenizers in files: those of GPT-2's first release, and those of Hugging Face.

    encoder.json, vocab.bpe    OpenAI's: the vocabulary and the merges
    vocab.json, merges.txt     the same two files under Hugging Face's names
    tokenizer.json             both in one, with the rules by which a text is split
    tokenizer_config.json      which token ends a text, and other habits

A vocabulary is {token: id}. A token is written with one character for each of its bytes, of an alphabet in which every
byte can be seen: a space is "Ġ". The merges are pairs of tokens, the first to be merged first. tiktoken has no merges:
among all neighbors it joins those whose joined token has the lowest id. The two agree if ids follow the order of the
merges, as they do in every vocabulary that comes out of counting; any other is refused.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.data.tokenizer import ENDOFTEXT, PLUS, Encoding, byte_level_encoding, gpt2_ranks
from numpygpt.errors import InputError
from numpygpt.reading import inside, read_file, read_json
from numpygpt.sections import value_of

VOCABULARY, MERGES = "vocab.json", "merges.txt"
OPENAIS = ("encoder.json", "vocab.bpe")
TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
#: What `write_tokenizer` writes.
WRITTEN = {VOCABULARY, MERGES, TOKENIZER, SETTINGS}

#: The tokens of GPT-2 without the special one.
GPT2_TOKENS = 50_256
#: The most bytes that one of these files has. GPT-2's have 1 to 4 million.
MOST_BYTES = 2**23

#: The bytes whose character in the alphabet has their own number; the others have the numbers from 256 on.
SEEN = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
UNSEEN = [value for value in range(256) if value not in SEEN]
TO_BYTES = {chr(value): value for value in SEEN} | {chr(256 + number): value for number, value in enumerate(UNSEEN)}
TO_ALPHABET = {value: character for character, value in TO_BYTES.items()}

Pair = tuple[str, str]


class Vocabulary(NamedTuple):
    """What tiktoken makes a tokenizer of.

    ranks     {token: id}
    special   {text: id} of the tokens that are no bytes of a text, such as the one that ends it
    """

    ranks: dict[bytes, int]
    special: dict[str, int]


def named(name: str) -> Vocabulary:
    """The vocabulary of one of our tokenizers, "bytes" or "gpt2", perhaps with special tokens after its name."""
    base, *added = name.split(PLUS)
    if base == "bytes":
        ranks, special = {bytes([value]): value for value in range(256)}, {}
    else:
        ranks = gpt2_ranks()  # they ship with numpygpt
        special = {ENDOFTEXT: len(ranks)}
    first = len(ranks) + len(special)
    return Vocabulary(ranks, {**special, **{token: number for number, token in enumerate(added, first)}})


def _name_of(vocabulary: Vocabulary) -> str | None:
    """The name of our tokenizer of this vocabulary; None if it is none of ours."""
    in_order = sorted(vocabulary.special, key=vocabulary.special.__getitem__)
    for base, tokens in (("bytes", 256), ("gpt2", GPT2_TOKENS)):
        if len(vocabulary.ranks) == tokens:
            name = PLUS.join([base, *in_order[len(named(base).special) :]])
            return name if vocabulary == named(name) else None
    return None


# Reading


class TokenizerFiles(NamedTuple):
    """The tokenizer of a folder.

    name   for `get_tokenizer`; None if it is none of ours
    own    makes the Encoding of another; it raises InputError if tiktoken cannot do what the files say. None if there
           are no files of a tokenizer
    """

    name: str | None
    own: Callable[[], Encoding] | None


NO_TOKENIZER = TokenizerFiles(None, None)


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """The tokenizer of a folder of Hugging Face's or OpenAI's files.

    What is wrong with it is raised when it is made, so that the model can be read without it.
    """
    try:
        vocabulary = _vocabulary_of(folder)
    except InputError as error:
        return TokenizerFiles(None, _refusing(str(error)))
    if vocabulary is None:
        return NO_TOKENIZER
    name = _name_of(vocabulary)
    if name is not None:
        return TokenizerFiles(name, None)
    return TokenizerFiles(None, lambda: byte_level_encoding(folder.name, *vocabulary))


def _refusing(reason: str) -> Callable[[], Encoding]:
    def refuse() -> Encoding:
        raise InputError(reason)

    return refuse


def _vocabulary_of(folder: Path) -> Vocabulary | None:
    settings: dict[str, Any] = {}
    if (folder / SETTINGS).exists():
        settings = read_json(inside(folder, SETTINGS), "tokenizer's settings", MOST_BYTES)
    if settings.get("add_prefix_space") or settings.get("add_bos_token"):
        raise InputError(f"{folder / SETTINGS} asks for a space or a token before each text, which is not done here")
    if (folder / TOKENIZER).exists():
        return _read_in_one(inside(folder, TOKENIZER))
    for vocabulary, merges in ((VOCABULARY, MERGES), OPENAIS):
        if (folder / vocabulary).exists() and (folder / merges).exists():
            return read_vocabulary(inside(folder, vocabulary), inside(folder, merges), _added(settings))
    return None


def read_vocabulary(vocabulary: Path, merges: Path, added: Iterable[str] = (ENDOFTEXT,)) -> Vocabulary:
    """The vocabulary in two files, with these tokens added to what merges make.

    Raises InputError for files that cannot be read, and for a vocabulary that tiktoken cannot do.
    """
    ids = read_json(vocabulary, "vocabulary", MOST_BYTES)
    try:
        lines = read_file(merges, "file of merges", MOST_BYTES).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"the file of merges {merges} is not UTF-8: {error}") from error
    lines = [line.rstrip("\r") for line in lines if line and not line.startswith("#version")]
    return _vocabulary(vocabulary, ids, lines, added)


def _added(settings: Mapping[str, Any]) -> set[str]:
    """The added tokens of a tokenizer's settings, and the one of GPT-2, whose files leave it unsaid."""
    listed = settings.get("added_tokens_decoder")
    tokens = listed.values() if isinstance(listed, dict) else ()
    return {ENDOFTEXT, *(str(token["content"]) for token in tokens if isinstance(token, dict) and "content" in token)}


def _read_in_one(path: Path) -> Vocabulary:
    contents = read_json(path, "tokenizer", MOST_BYTES)
    try:
        _refuse_other_rules(contents)
        model = value_of(contents, "model", dict)
        listed = value_of({"added_tokens": [], **contents}, "added_tokens", list)
        if not all(isinstance(token, dict) for token in listed):
            raise InputError("its added_tokens are not all objects")
        added = {value_of(token, "content", str): value_of(token, "id", int) for token in listed}
        ids = {**value_of(model, "vocab", dict), **added}
        merges = value_of(model, "merges", list)
    except InputError as error:
        raise InputError(f"the tokenizer {path} cannot be used: {error}") from error
    return _vocabulary(path, ids, merges, added)


def _refuse_other_rules(contents: Mapping[str, Any]) -> None:
    """InputError for a tokenizer.json that does not treat a text as GPT-2's."""
    model, splitting = value_of(contents, "model", dict), value_of(contents, "pre_tokenizer", dict)
    following = value_of({"post_processor": None, **contents}, "post_processor", dict, type(None))
    rules: dict[str, tuple[Any, Any]] = {
        "model.type": (model.get("type", "BPE"), "BPE"),
        "model.dropout": (model.get("dropout"), None),
        "model.continuing_subword_prefix": (model.get("continuing_subword_prefix") or "", ""),
        "model.end_of_word_suffix": (model.get("end_of_word_suffix") or "", ""),
        "normalizer": (contents.get("normalizer"), None),
        "pre_tokenizer.type": (splitting.get("type"), "ByteLevel"),
        "pre_tokenizer.add_prefix_space": (splitting.get("add_prefix_space", True), False),
        "pre_tokenizer.use_regex": (splitting.get("use_regex", True), True),
        "post_processor.type": (following.get("type") if following else "ByteLevel", "ByteLevel"),
    }
    for rule, (found, expected) in rules.items():
        if found != expected:
            raise InputError(f"its {rule} is {found!r:.80}; expected {expected!r}, as GPT-2's")


def _vocabulary(path: Path, ids: Mapping[str, Any], merges: Sequence[Any], added: Iterable[str]) -> Vocabulary:
    """The vocabulary of these ids, if tiktoken can do it. `merges` are lines of two tokens, or lists of two."""
    try:
        _refuse_other_ids(list(ids.values()))
        special = {token: ids[token] for token in added if token in ids}
        merged = {token: number for token, number in ids.items() if token not in special}
        _refuse_another_order(merged, _joined(merges))
        return Vocabulary(_in_bytes(merged), special)
    except (InputError, TypeError) as error:
        raise InputError(f"the vocabulary {path} cannot be used: {error}") from error


def _joined(merges: Iterable[Any]) -> list[str]:
    """The token that each merge makes."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for pair in pairs:
        if len(pair) != 2:
            raise InputError(f"its merge {pair!r:.80} is not of two tokens")
    return ["".join(pair) for pair in pairs]


def _in_bytes(ids: Mapping[str, int]) -> dict[bytes, int]:
    byte_of = TO_BYTES.__getitem__
    try:
        return {bytes(map(byte_of, token)): number for token, number in ids.items()}
    except KeyError as error:
        raise InputError(f"a token has the character {error}, which is not in GPT-2's alphabet of bytes") from error


def _refuse_other_ids(ids: Sequence[Any]) -> None:
    if not all(type(number) is int for number in ids) or sorted(ids) != list(range(len(ids))):
        raise InputError(f"its {len(ids)} ids are not 0 to {len(ids) - 1}, each once")


def _refuse_another_order(ids: Mapping[str, int], merged: Sequence[str]) -> None:
    """InputError unless there is a token for each byte and each merge, and no other, and ids follow the merges."""
    single = TO_BYTES.keys()
    if len(ids) != len(single) + len(merged) or ids.keys() != single | set(merged):
        raise InputError(
            f"it has {len(ids)} tokens, {len(single & ids.keys())} of the {len(single)} bytes among them, and "
            f"{len(merged)} merges; expected a token for each byte and each merge, and no other"
        )
    for earlier, later in pairwise(merged):
        if ids[earlier] > ids[later]:
            raise InputError(
                f"its ids do not follow its merges: {later!r} has id {ids[later]}, and {earlier!r}, which is merged "
                f"before, {ids[earlier]}"
            )


# Writing


def write_tokenizer(folder: Path, vocabulary: Vocabulary, context_length: int) -> None:
    """Write the files by which `transformers` makes a tokenizer of this vocabulary. OSError if that fails."""
    ids = dict(zip(_in_alphabet(vocabulary.ranks), vocabulary.ranks.values(), strict=True))
    pairs = merges_of(vocabulary.ranks)
    sides = (_in_alphabet(pair[side] for pair in pairs) for side in (0, 1))
    merges = [" ".join(pair) for pair in zip(*sides, strict=True)]
    settings = {
        "tokenizer_class": "GPT2Tokenizer" if ENDOFTEXT in vocabulary.special else "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        **{f"{role}_token": ENDOFTEXT for role in ("bos", "eos", "unk") if ENDOFTEXT in vocabulary.special},
    }
    write_json(folder / TOKENIZER, _in_one(ids, merges, vocabulary.special))
    write_json(folder / SETTINGS, settings)
    write_json(folder / VOCABULARY, ids | vocabulary.special)
    (folder / MERGES).write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pairs whose merges, one after another, make these tokens.

    The pair of a token is the two parts that are left if its bytes are merged as far as two parts.
    """
    rank_of, none = ranks.get, len(ranks)
    pairs = []
    for token in sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [rank_of(left + right, none) for left, right in pairwise(parts)]
            first = joined.index(min(joined))
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        pairs.append((parts[0], parts[1]))
    return pairs


def _in_alphabet(tokens: Iterable[bytes]) -> list[str]:
    character_of = TO_ALPHABET.__getitem__
    return ["".join(map(character_of, token)) for token in tokens]


def _in_one(ids: Mapping[str, int], merges: Sequence[str], special: Mapping[str, int]) -> dict[str, Any]:
    """The contents of tokenizer.json, as the library `tokenizers` reads it."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    habits = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **habits} for text, number in special.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level | {"trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": dict(ids),
            "merges": list(merges),
        },
    }


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a JSON file, for people to read, too. OSError if that fails."""
    path.write_text(json.dumps(contents, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
