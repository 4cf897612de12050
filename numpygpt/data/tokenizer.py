"""Tokenizers: from text to token ids and back, by tiktoken.

"bytes"   the 256 single bytes of UTF-8 text, one id each: V = 256
"gpt2"    GPT-2's byte-pair encoding: V = 50257, of which `<|endoftext|>` is 50256; its ranks ship with numpygpt

More special tokens can follow the name, each after a plus: "bytes+<|endoftext|>" has V = 257. They get the next ids in
this order. So a checkpoint names them with its tokenizer.
"""

import os
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from numpygpt.data.shipped import read_exactly
from numpygpt.errors import InputError
from numpygpt.shapes import Array, Integer

if TYPE_CHECKING:
    from tiktoken import Encoding as Encoding  # for other modules too
else:
    Encoding = Any  # tiktoken is imported where a tokenizer is made

#: What stands before each special token in the name of a tokenizer.
PLUS = "+"


class Names(tuple[str, ...]):
    """Names of tokenizers. A name with special tokens after it is `in` them, too."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.partition(PLUS)[0] in tuple(self)


TOKENIZERS = Names(("bytes", "gpt2"))
ENDOFTEXT = "<|endoftext|>"

GPT2_RANKS_FILE = "gpt2.tiktoken"
GPT2_RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
GPT2_RANKS_BYTES = 835_554


def get_tokenizer(name: str, vocab: str | os.PathLike[str] | None = None) -> Encoding:
    """The tiktoken Encoding called `name`: one of TOKENIZERS, and perhaps special tokens, each after a plus.

    vocab   for "gpt2": a file of GPT-2's ranks as tiktoken writes it, in each line a token in base64 and its rank;
            None: the ranks that ship with numpygpt

    Raises InputError for an unknown name, for a special token as `with_special_tokens`, for a `vocab` with "bytes", and
    for a file of ranks that cannot be read or differs from GPT-2's in any byte.
    """
    if PLUS in name:
        name, *tokens = name.split(PLUS)
        return with_special_tokens(get_tokenizer(name, vocab), tokens)
    if name not in TOKENIZERS:
        raise InputError(f"tokenizer {name!r} is unknown; expected one of: {', '.join(TOKENIZERS)}")
    if name == "gpt2":
        ranks = gpt2_ranks(vocab)
        return byte_level_encoding(name, ranks, {ENDOFTEXT: len(ranks)})
    if vocab is not None:
        raise InputError(f"tokenizer 'bytes' takes no vocabulary file; found {vocab}: leave it out")
    return _bytes_encoding()


def with_special_tokens(tokenizer: Encoding, tokens: Sequence[str]) -> Encoding:
    """The tokenizer with more special tokens, whose ids follow its own; `get_tokenizer` makes the same of its name.

    In a text, `text_to_token_ids` takes a special token for the token, as do all commands.

    Raises InputError for a token that is empty, has a plus in it, or is a special token already.
    """
    from tiktoken import Encoding

    special = dict(tokenizer._special_tokens)  # tiktoken's README extends an encoding by these attributes
    for token in tokens:
        if not token or PLUS in token:
            raise InputError(f"the special token {token!r} is empty or has a {PLUS} in it; expected one like <|pad|>")
        if token in special:
            raise InputError(f"the tokenizer {tokenizer.name!r} has the special token {token!r} already; leave it out")
        special[token] = tokenizer.n_vocab + len(special) - len(tokenizer._special_tokens)
    return Encoding(
        PLUS.join([tokenizer.name, *tokens]),
        pat_str=tokenizer._pat_str,
        mergeable_ranks=tokenizer._mergeable_ranks,
        special_tokens=special,
    )


def text_to_token_ids(text: str, tokenizer: Encoding) -> Integer[Array, "1 T"]:
    """The token ids of `text` as a batch of one, int64.

    A special token of the tokenizer in the text, such as `<|endoftext|>`, becomes that token.
    """
    ids = tokenizer.encode(text, allowed_special="all")
    return np.array(ids, dtype=np.int64)[np.newaxis]


def token_ids_to_text(token_ids: Array | Sequence[int], tokenizer: Encoding) -> str:
    """The text of one sequence of token ids, (1, T) or (T).

    Bytes that are not UTF-8, such as a part of a character, become U+FFFD, the replacement character.

    Raises InputError for several sequences, for ids that are not integers, and for ids outside the tokenizer's
    vocabulary.
    """
    ids = np.asarray(token_ids)
    if ids.ndim not in (1, 2) or (ids.ndim == 2 and len(ids) != 1):
        raise InputError(f"token ids have shape {ids.shape}; expected one sequence, (T,) or (1,T): decode row by row")
    if ids.size == 0:
        return ""
    if not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"token ids have dtype {ids.dtype}; expected integers")
    unknown = ids[(ids < 0) | (ids >= tokenizer.n_vocab)]
    if unknown.size:
        raise InputError(
            f"token id {unknown[0]} is outside the vocabulary of tokenizer {tokenizer.name!r}; "
            f"expected ids from 0 to {tokenizer.n_vocab - 1}: decode with the model's own tokenizer"
        )
    return tokenizer.decode(ids.ravel().tolist(), errors="replace")


def _bytes_encoding() -> Encoding:
    from tiktoken import Encoding

    return Encoding(
        "bytes",
        pat_str=r"[\s\S]",
        mergeable_ranks={bytes([value]): value for value in range(256)},
        special_tokens={},
        explicit_n_vocab=256,
    )


def byte_level_encoding(name: str, ranks: Mapping[bytes, int], special: Mapping[str, int]) -> Encoding:
    """An Encoding that splits a text as GPT-2's does, by tiktoken's own pattern.

    ranks     {token: id}; the lower of two ids is merged first
    special   {text: id} of the tokens that are no bytes of a text
    """
    from tiktoken import Encoding
    from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

    return Encoding(name, pat_str=r50k_pat_str, mergeable_ranks=dict(ranks), special_tokens=dict(special))


def gpt2_ranks(vocab: str | os.PathLike[str] | None = None) -> dict[bytes, int]:
    """GPT-2's ranks as {token: rank}, of a file or those that ship. InputError as `get_tokenizer`.

    `tiktoken.load` could parse the lines too, but only from a file. It keeps a copy of the file in the temporary
    folder, and from then on reads the copy, even if the file has changed.
    """
    contents = read_exactly(vocab, GPT2_RANKS_FILE, "file of GPT-2's ranks", GPT2_RANKS_SHA256, GPT2_RANKS_BYTES)
    lines = (line.split() for line in contents.splitlines())
    return {b64decode(token): int(rank) for token, rank in lines}
