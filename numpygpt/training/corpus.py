"""What a run learns from: token ids of a text, or of a file of token ids, in two parts."""

import shlex
from collections.abc import Callable
from hashlib import file_digest, sha256
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from numpygpt.data.loader import DataLoader, Draws
from numpygpt.data.texts import split_text
from numpygpt.data.token_file import open_tokens, validation_path
from numpygpt.data.tokenizer import Encoding, text_to_token_ids
from numpygpt.data.windows import TokenWindows
from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.shapes import Array, Integer

TRAIN_SHARE = 0.9


@runtime_checkable
class Learned(Protocol):
    """What a run learns from."""

    @property
    def sha256(self) -> str:
        """By which it is known again."""

    def loaders(self, batch_size: int, length: int, rng: Draws) -> tuple[DataLoader, DataLoader]:
        """The batches to train on, and those to validate with. InputError if there are too few for one."""


class Corpus(NamedTuple):
    """Token ids to train on, and token ids to validate with.

    training     (N,) of any integer type; those of a file are its memory map
    validation   (M,) of that type
    sha256       SHA-256 of the text in UTF-8; or of the digests of the two files, one after the other
    """

    training: Integer[Array, "N"]
    validation: Integer[Array, "M"]
    sha256: str

    def loaders(self, batch_size: int, length: int, rng: Draws) -> tuple[DataLoader, DataLoader]:
        """The batches to train on, in a new order each epoch and full ones only, and those to validate with.

        Windows of `length` do not overlap. Raises InputError, which names the part, for a part that is too short.
        """
        return (
            _loader("training", self.training, batch_size, length, rng, shuffle=True),
            _loader("validation", self.validation, batch_size, length, rng, shuffle=False),
        )


def _loader(
    part: str, token_ids: Integer[Array, "N"], batch_size: int, length: int, rng: Draws, *, shuffle: bool
) -> DataLoader:
    try:
        windows = TokenWindows(token_ids, length, stride=length)
        return DataLoader(windows, batch_size, shuffle=shuffle, drop_last=shuffle, rng=rng)
    except InputError as error:
        raise InputError(f"the {part} part of the text is too short: {error}") from error


def read_corpus(
    tokens: str | None, read_text: Callable[[], str], tokenizer: Encoding, config: GPTConfig
) -> Corpus:
    """The corpus of a file of token ids, or of a text.

    tokens      the path of the file; None: the text
    read_text   gives the text
    config      the model's; the ids of a file have to be smaller than its vocab_size

    Raises InputError for a text or a file that cannot be read or used.
    """
    if tokens is not None:
        return _of_files(Path(tokens), config.vocab_size)
    text = read_text()
    training, validation = (text_to_token_ids(part, tokenizer)[0] for part in split_text(text, TRAIN_SHARE))
    return Corpus(training, validation, sha256(text.encode()).hexdigest())


def _of_files(path: Path, vocab_size: int) -> Corpus:
    beside = validation_path(path)
    training = open_tokens(path, vocab_size)
    if not beside.exists():
        raise InputError(
            f"there is no file {beside} of tokens to validate with; make both with: "
            f"{shlex.join(['numpygpt', 'tokenize', 'TEXT', '--out', str(path)])}"
        )
    validation = open_tokens(beside, vocab_size)
    digests = []
    for file in (path, beside):
        with file.open("rb") as opened:
            digests.append(file_digest(opened, "sha256").digest())
    return Corpus(training, validation, sha256(b"".join(digests)).hexdigest())
