"""From texts of any size to a file of token ids, on several processes, in memory that does not grow with the texts.

A text is cut into pieces, and each piece is encoded by itself. The ids are those of the whole text, because a text is
cut only between a character that is no white space and one that is. GPT-2's pattern has no match across such a place:
in each of its alternatives white space comes before everything else. The single bytes of "bytes" can be cut anywhere.
"""

import codecs
import gzip
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from numpygpt.data.token_file import dtype_of
from numpygpt.data.tokenizer import Encoding, get_tokenizer
from numpygpt.errors import InputError
from numpygpt.reading import refuse_irregular

#: Bytes that are read at a time. Less, and processes spend their time on handing pieces over.
READ_AT_ONCE = 2**20
#: The characters with Unicode's property White_Space, which `\s` in the pattern stands for. `str.isspace` has 4 more.
WHITE_SPACE = frozenset(
    map(chr, [*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000])
)


class Part(NamedTuple):
    """So many characters of the texts, after those of the parts before it, and the open file that takes their ids."""

    length: int
    file: IO[bytes]


def characters(paths: Sequence[Path], advance: Callable[[int], Any] = lambda read: None) -> Iterator[str]:
    """The texts of UTF-8 files one after another, in parts of any length. Every kind of line end becomes a newline.

    A file whose name ends in `.gz` is unpacked. `advance` is told how many more bytes of the files were read.

    Raises InputError for a file that cannot be read, is damaged or is not UTF-8.
    """
    for path in paths:
        refuse_irregular(path, "text file")
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            with ExitStack() as open_files:
                packed = open_files.enter_context(path.open("rb"))
                file: Any = open_files.enter_context(gzip.open(packed)) if path.suffix == ".gz" else packed
                before, held = 0, ""
                while block := file.read(READ_AT_ONCE):
                    text = held + decoder.decode(block)
                    held = "\r" if text.endswith("\r") else ""  # perhaps the first half of a line end
                    yield _with_newlines(text.removesuffix("\r"))
                    advance(packed.tell() - before)
                    before = packed.tell()
                yield _with_newlines(held + decoder.decode(b"", final=True))
        except UnicodeDecodeError as error:
            raise InputError(f"the text file {path} is not UTF-8: {error.reason}; convert the file to UTF-8") from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"the text file {path} is damaged or not compressed with gzip: {error}") from error
        except OSError as error:
            raise InputError(f"cannot read the text file {path}: {error.strerror}") from error


def _with_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """The same text in pieces that can be encoded one by one, each about as long as one of the texts.

    A piece is longer if there is no place to cut.
    """
    held = ""  # has no place to cut
    for text in texts:
        searched, held = len(held), held + text
        end = _last_cut(held, searched)
        if end:
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def _last_cut(text: str, start: int) -> int:
    """The last place from `start` on with white space after it and none before it; 0 if there is none."""
    for end in range(len(text) - 1, max(start, 1) - 1, -1):
        if text[end] in WHITE_SPACE and text[end - 1] not in WHITE_SPACE:
            return end
    return 0


def write_tokens(
    paths: Sequence[Path],
    parts: Sequence[Part],
    tokenizer: str,
    vocab: str | os.PathLike[str] | None,
    processes: int,
    advance: Callable[[int], Any] = lambda read: None,
) -> list[int]:
    """Write the ids of each part of the texts to its file; returns how many there are in each.

    tokenizer, vocab   as `get_tokenizer` takes them
    processes          that encode at the same time
    advance            is told how many more bytes of the texts were read

    Raises InputError as `characters` and `get_tokenizer`.
    """
    dtype = dtype_of(get_tokenizer(tokenizer, vocab).n_vocab)
    counts, rest, texts = [], "", characters(paths, advance)
    new_processes = get_context("spawn")  # a fork would copy the locks of this process's threads
    with ProcessPoolExecutor(processes, new_processes, _begin, (tokenizer, vocab, dtype)) as pool:
        for part in parts:
            taken = _Taken(chain([rest], texts), part.length)
            sizes = [part.file.write(encoded) for encoded in _in_order(pool, pieces(taken), 2 * processes)]
            counts.append(sum(sizes) // dtype.itemsize)
            rest = taken.rest
    return counts


class _Taken(Iterator[str]):
    """The first `count` characters of some texts; then `rest` is what the last one of them has beyond."""

    def __init__(self, texts: Iterator[str], count: int) -> None:
        self._texts, self._left, self.rest = texts, count, ""

    def __next__(self) -> str:
        if self._left == 0:
            raise StopIteration
        text = next(self._texts)
        taken, self.rest = text[: self._left], text[self._left :]
        self._left -= len(taken)
        return taken


def _in_order(pool: ProcessPoolExecutor, texts: Iterable[str], ahead: int) -> Iterator[bytes]:
    """The ids of the texts in their order. At most `ahead` of them are on their way, so that memory stays bounded."""
    waiting: deque[Future[bytes]] = deque()
    for text in texts:
        waiting.append(pool.submit(_encoded, text))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    yield from (future.result() for future in waiting)


# In each process

_encoding: Encoding
_dtype: np.dtype


def _begin(tokenizer: str, vocab: str | os.PathLike[str] | None, dtype: np.dtype) -> None:
    global _encoding, _dtype  # a process encodes many pieces, and makes its tokenizer once
    _encoding, _dtype = get_tokenizer(tokenizer, vocab), dtype


def _encoded(text: str) -> bytes:
    return _encoding.encode_to_numpy(text, allowed_special="all").astype(_dtype).tobytes()
