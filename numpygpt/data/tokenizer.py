"""Tokenizers: text to token ids and back, by tiktoken.

"bytes"   the 256 single bytes of UTF-8 text, one id each: V = 256, nothing to download
"gpt2"    GPT-2's byte-pair encoding: V = 50257, of which `<|endoftext|>` is 50256
"""

import os
from base64 import b64decode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.shapes import Array, Integer

if TYPE_CHECKING:
    from tiktoken import Encoding as Encoding  # for other modules too
else:
    Encoding = Any  # tiktoken is imported where a tokenizer is made

TOKENIZERS = ("bytes", "gpt2")
ENDOFTEXT = "<|endoftext|>"

GPT2_RANKS_FILE = "gpt2.tiktoken"
GPT2_RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
GPT2_RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"


def get_tokenizer(name: str, vocab: str | os.PathLike[str] | None = None) -> Encoding:
    """The tiktoken Encoding called `name`, one of TOKENIZERS.

    GPT-2's ranks (tiktoken's text form, a base64 token and its rank a line) come from the file `vocab`;
    without it, from `gpt2.tiktoken` in the folder that the environment variable NUMPYGPT_DATA names, if it is
    there; else tiktoken downloads and caches them.

    Raises InputError for an unknown name, for a ranks file that is missing or differs from GPT-2's in any
    byte, and where the ranks would have to be downloaded and cannot be.
    """
    if name not in TOKENIZERS:
        raise InputError(f"tokenizer {name!r} is unknown; expected one of: {', '.join(TOKENIZERS)}")
    if name == "bytes":
        if vocab is not None:
            raise InputError(f"tokenizer 'bytes' takes no vocabulary file; found {vocab}: leave it out")
        return _bytes_encoding()
    ranks_file = Path(vocab) if vocab is not None else _supplied_ranks_file()
    return _downloaded_gpt2_encoding() if ranks_file is None else _gpt2_encoding(ranks_file)


def text_to_token_ids(text: str, tokenizer: Encoding) -> Integer[Array, "1 T"]:
    """The token ids of `text` as a batch of one, int64.

    `<|endoftext|>` in the text becomes the tokenizer's special token of that name, where it has one.
    """
    ids = tokenizer.encode(text, allowed_special={ENDOFTEXT})
    return np.array(ids, dtype=np.int64)[np.newaxis]


def token_ids_to_text(token_ids: Array | Sequence[int], tokenizer: Encoding) -> str:
    """The text of one sequence of token ids, (1,T) or (T,).

    Bytes that are no UTF-8, such as part of a character, become U+FFFD, the replacement character.

    Raises InputError for several sequences, ids that are no integers and ids outside the tokenizer's
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


def _supplied_ranks_file() -> Path | None:
    folder = os.environ.get("NUMPYGPT_DATA")
    if not folder or not (Path(folder) / GPT2_RANKS_FILE).exists():
        return None
    return Path(folder) / GPT2_RANKS_FILE


def _downloaded_gpt2_encoding() -> Encoding:
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # no network is an OSError, a spoiled download a ValueError
        raise InputError(
            f"GPT-2's vocabulary could not be downloaded ({type(error).__name__}); fetch {GPT2_RANKS_URL} "
            f"on a machine with a network, save it as {GPT2_RANKS_FILE} and set NUMPYGPT_DATA to its folder"
        ) from error


def _gpt2_encoding(ranks_file: Path) -> Encoding:
    """GPT-2's Encoding from a file of its ranks: tiktoken's own pattern, ranks and special token."""
    from tiktoken import Encoding
    from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

    return Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=_read_gpt2_ranks(ranks_file),
        special_tokens={ENDOFTEXT: 50256},
        explicit_n_vocab=50257,
    )


def _read_gpt2_ranks(ranks_file: Path) -> dict[bytes, int]:
    try:
        contents = ranks_file.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read GPT-2's vocabulary {ranks_file}: {error.strerror}; fetch {GPT2_RANKS_URL}"
        ) from error
    found = sha256(contents).hexdigest()
    if found != GPT2_RANKS_SHA256:
        raise InputError(
            f"GPT-2's vocabulary {ranks_file} is damaged or another file: {len(contents)} bytes with "
            f"sha256 {found}; expected {GPT2_RANKS_SHA256}: fetch {GPT2_RANKS_URL} again"
        )
    lines = (line.split() for line in contents.splitlines())
    return {b64decode(token): int(rank) for token, rank in lines}
