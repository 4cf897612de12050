"""Text for training: where it comes from, its windows of token ids, and batches of them in PyTorch's order.

A window is an input and its targets, both max_length token ids; the targets are the input shifted by one:

    token ids          a b c d e f g        max_length 3, stride 2
    inputs, targets    a b c -> b c d
                       c d e -> d e f
                       (e f g has no next token)
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from numpygpt.errors import InputError
from numpygpt.random import TorchGenerator
from numpygpt.shapes import Array, Integer
from numpygpt.tokenizer import Encoding, get_tokenizer, text_to_token_ids


def python_reference_text() -> str:
    """The Python language reference as CPython carries it for `help()`: about 465,000 characters of prose.

    Its topics (the module pydoc_data.topics) in alphabetical order, an empty line between them. The text
    differs a little between versions of Python. Raises InputError where Python comes without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError(
            "this Python comes without its language reference (the module pydoc_data.topics); "
            "give a text of your own with --text FILE"
        ) from error
    return "\n\n".join(topics[name] for name in sorted(topics))


def read_text(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> str:
    """The text of one UTF-8 file, or of several, one right after the other.

    Raises InputError for no files, and for a file that is missing, not a file, not UTF-8 or empty.
    """
    files = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not files:
        raise InputError("no text file was given; expected at least one")
    return "".join(_read_file(Path(file)) for file in files)


def _read_file(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the text file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"the text file {path} is not UTF-8: found byte {error.object[error.start]:#04x} "
            f"at offset {error.start}; convert the file to UTF-8"
        ) from error
    if not text:
        raise InputError(f"the text file {path} is empty; expected text to learn from")
    return text


def split_text(text: str, train_ratio: float = 0.9) -> tuple[str, str]:
    """The first `train_ratio` of the characters for training, the rest for validation.

    Raises InputError for a ratio outside (0, 1) and a text too short to give both a character.
    """
    if not 0 < train_ratio < 1:
        raise InputError(f"train_ratio is {train_ratio}; expected a number between 0 and 1")
    end = int(train_ratio * len(text))
    if not 0 < end < len(text):
        raise InputError(
            f"a text of {len(text)} characters cannot be split at {train_ratio}, one part is empty: give more"
        )
    return text[:end], text[end:]


class GPTDatasetV1:
    """The book's dataset: windows of `max_length` token ids, one every `stride` tokens.

    input_ids, target_ids   (N, max_length) int64, read-only views of one array of token ids

    Raises InputError for a max_length or stride that is not positive, and a text too short for one window.
    """

    input_ids: Integer[Array, "N T"]
    target_ids: Integer[Array, "N T"]

    def __init__(self, txt: str, tokenizer: Encoding, max_length: int, stride: int) -> None:
        _check_positive(max_length=max_length, stride=stride)
        token_ids = text_to_token_ids(txt, tokenizer)[0]
        if len(token_ids) <= max_length:
            raise InputError(
                f"the text has {len(token_ids)} tokens; expected at least {max_length + 1}, "
                f"max_length {max_length} and a next token: give more text or a smaller max_length"
            )
        self.input_ids = sliding_window_view(token_ids[:-1], max_length)[::stride]
        self.target_ids = sliding_window_view(token_ids[1:], max_length)[::stride]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, window: int) -> tuple[Array, Array]:
        """One window: inputs and targets, (max_length,) each."""
        return self.input_ids[window], self.target_ids[window]


class Position(TypedDict):
    """Where in an epoch its batches stand: all that is needed to go on from there, in types that JSON has."""

    order_seed: int | None
    batches_done: int


class DataLoader:
    """Batches of a dataset in the order of `torch.utils.data.DataLoader`, from the same random draws.

    Each `iter(loader)` is an epoch. It draws one seed from `rng`, which PyTorch would give to worker
    processes and nothing uses here. A shuffled epoch draws another when its first batch is asked for: the
    seed of a generator of its own, which orders the windows.

    dataset      a GPTDatasetV1
    batch_size   B, windows in a batch
    shuffle      whether each epoch has a new random order
    drop_last    whether a last batch of fewer than B windows is left out
    rng          the TorchGenerator in the part of PyTorch's default generator, or its seed; None: any seed

    Raises InputError for a batch_size that is not positive and for windows too few for a single batch.
    """

    def __init__(
        self,
        dataset: GPTDatasetV1,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        rng: TorchGenerator | int | None = None,
    ) -> None:
        _check_positive(batch_size=batch_size)
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rng = rng if isinstance(rng, TorchGenerator) else TorchGenerator(rng)
        if len(self) == 0:
            raise InputError(
                f"{len(dataset)} windows make no batch of {batch_size}, and drop_last drops a smaller one: "
                f"give more text, or a smaller batch_size or stride"
            )

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full if self.drop_last or rest == 0 else full + 1

    def __iter__(self) -> "Batches":
        self.rng.random_int64()  # the seed that PyTorch gives its worker processes
        return Batches(self, order_seed=None, batches_done=0)

    def resume(self, position: Position) -> "Batches":
        """The rest of an epoch that was at this `Batches.position`. What it drew is not drawn again.

        Raises InputError for a position that this loader cannot have been at.
        """
        seed, done = position["order_seed"], position["batches_done"]
        if not 0 <= done <= len(self) or (seed is not None) != (self.shuffle and done > 0):
            raise InputError(
                f"order_seed {seed} and batches_done {done} are no position in {len(self)} batches with "
                f"shuffle={self.shuffle}: resume with the text, sizes and shuffle of the first run"
            )
        return Batches(self, seed, done)


class Batches(Iterator[tuple[Array, Array]]):
    """One epoch: yields (inputs, targets), each a new (B, T) int64 array, the last perhaps of fewer rows."""

    def __init__(self, loader: DataLoader, order_seed: int | None, batches_done: int) -> None:
        self._loader = loader
        self._order_seed = order_seed
        self._batches_done = batches_done
        self._order: Array | None = None

    @property
    def position(self) -> Position:
        """Where this epoch stands; `DataLoader.resume` goes on from there with the same batches."""
        return {"order_seed": self._order_seed, "batches_done": self._batches_done}

    def __len__(self) -> int:
        """Batches still to come."""
        return len(self._loader) - self._batches_done

    def __next__(self) -> tuple[Integer[Array, "B T"], Integer[Array, "B T"]]:
        if self._order is None:
            self._order = self._draw_order()
        if len(self) == 0:
            raise StopIteration
        start = self._batches_done * self._loader.batch_size
        windows = self._order[start : start + self._loader.batch_size]
        self._batches_done += 1
        dataset = self._loader.dataset
        return dataset.input_ids[windows], dataset.target_ids[windows]

    def _draw_order(self) -> Array:
        loader = self._loader
        if not loader.shuffle:
            return np.arange(len(loader.dataset))
        if self._order_seed is None:
            self._order_seed = loader.rng.random_int64()
        return TorchGenerator(self._order_seed).randperm(len(loader.dataset))


def create_dataloader_v1(
    txt: str,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
    *,
    tokenizer: Encoding | None = None,
    rng: TorchGenerator | int | None = None,
) -> DataLoader:
    """The book's loader: windows of `txt` in batches. Arguments and errors as GPTDatasetV1 and DataLoader.

    num_workers is there for the book's calls and changes nothing: batches come out of one array, in this
    process. tokenizer defaults to GPT-2's.
    """
    dataset = GPTDatasetV1(txt, tokenizer or get_tokenizer("gpt2"), max_length, stride)
    return DataLoader(dataset, batch_size, shuffle=shuffle, drop_last=drop_last, rng=rng)


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} is {size}; expected a positive integer")
