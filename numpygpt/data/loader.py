"""Batches of a dataset in the order of PyTorch's DataLoader."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np

from numpygpt.data.tokenizer import Encoding, get_tokenizer
from numpygpt.data.windows import GPTDatasetV1, check_positive
from numpygpt.errors import InputError
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import value_of
from numpygpt.shapes import Array, Integer


class Position(TypedDict):
    """How far an epoch has come: all that is needed to go on from there, in types that JSON has.

    order_seed     the seed of the epoch's order; None as long as it is not drawn, and without shuffling
    batches_done   the batches that were given so far
    """

    order_seed: int | None
    batches_done: int


@runtime_checkable
class Draws(Protocol):
    """What a DataLoader draws from: a `TorchGenerator`, or PyTorch's own generator behind this method."""

    def random_int64(self) -> int:
        """A random number from 0 to 2^63 - 1, from two raw outputs of the generator."""


@runtime_checkable
class Dataset(Protocol):
    """What has batches: `TokenWindows`, and the datasets of `numpygpt.data.batching` and `numpygpt.data.packing`.

    unit   what its items are called, for messages
    """

    unit: str

    def __len__(self) -> int:
        """How many items there are."""

    def batch(self, numbers: Integer[Array, "B"]) -> Any:
        """The items of these numbers, as one batch: a tuple of new arrays."""


@runtime_checkable
class Items(Protocol):
    """What has items, of which a collate_fn makes batches: a list, or the book's InstructionDataset."""

    def __len__(self) -> int:
        """How many items there are."""

    def __getitem__(self, index: Any, /) -> Any:
        """The item of this number."""


class DataLoader:
    """Batches of a dataset in the order of `torch.utils.data.DataLoader`, from the same random draws.

    Each `iter(loader)` is an epoch. It draws one seed from `rng`, which PyTorch would give to worker
    processes, and which is not used here. A shuffled epoch draws a second seed when its first batch is asked
    for. This one seeds a generator of its own, which orders the items.

    dataset      windows of token ids, a GPTDatasetV1, or another Dataset; or, with a collate_fn, a list of items
    batch_size   B, items in a batch
    shuffle      whether each epoch has a new random order
    drop_last    whether a last batch of fewer than B items is left out
    rng          the TorchGenerator that takes the place of PyTorch's default generator, or its seed; None: a fresh
                 seed; or anything else that draws an int64 as PyTorch's generator does
    collate_fn   makes a batch of a list of items; None: the dataset's own `batch` does

    Raises InputError for a batch_size that is not positive, for items too few for a single batch, and for items that
    need a collate_fn.
    """

    def __init__(
        self,
        dataset: Dataset | Items,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        rng: Draws | int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        check_positive(batch_size=batch_size)
        if collate_fn is None and not hasattr(dataset, "batch"):
            raise InputError(f"a {type(dataset).__name__} has items, and no batches; expected a collate_fn for it")
        self.dataset: Any = dataset
        self.collate_fn = collate_fn
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rng: Draws = TorchGenerator(rng) if rng is None or isinstance(rng, int) else rng
        if len(self) == 0:
            unit = getattr(dataset, "unit", "items")
            raise InputError(
                f"{len(dataset)} {unit} make no batch of {batch_size}, and drop_last drops a smaller one: "
                f"give more text, or a smaller batch_size or stride"
            )

    def __len__(self) -> int:
        """How many batches an epoch has."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full if self.drop_last or rest == 0 else full + 1

    def __iter__(self) -> "Batches":
        self.rng.random_int64()  # the seed that PyTorch gives its worker processes
        return Batches(self, order_seed=None, batches_done=0)

    def resume(self, position: Mapping[str, Any]) -> "Batches":
        """The rest of an epoch that had come to this `Batches.position`. What it drew is not drawn again.

        Raises InputError if this is not a position, or not one that an epoch of this loader can come to.
        """
        seed = value_of(position, "order_seed", int, type(None))
        done = value_of(position, "batches_done", int)
        if not 0 <= done <= len(self) or (seed is not None) != (self.shuffle and done > 0):
            raise InputError(
                f"order_seed {seed} and batches_done {done} are no position in {len(self)} batches with "
                f"shuffle={self.shuffle}: resume with the text, sizes and shuffle of the first run"
            )
        return Batches(self, seed, done)

    def batch(self, numbers: Integer[Array, "B"]) -> Any:
        """The items of these numbers, as one batch."""
        if self.collate_fn is None:
            return self.dataset.batch(numbers)
        return self.collate_fn([self.dataset[number] for number in numbers.tolist()])


class Batches(Iterator[Any]):
    """One epoch. It yields the batches of the dataset, of B items each; the last one may have fewer.

    A batch of windows is a pair (inputs, targets) of new int64 arrays (B, T).
    """

    def __init__(self, loader: DataLoader, order_seed: int | None, batches_done: int) -> None:
        self._loader = loader
        self._order_seed = order_seed
        self._batches_done = batches_done
        self._order: Array | None = None

    @property
    def position(self) -> Position:
        """How far this epoch has come. `DataLoader.resume` goes on from there with the same batches."""
        return {"order_seed": self._order_seed, "batches_done": self._batches_done}

    def __len__(self) -> int:
        """How many batches are still to come."""
        return len(self._loader) - self._batches_done

    def __next__(self) -> Any:
        if self._order is None:
            self._order = self._draw_order()
        if len(self) == 0:
            raise StopIteration
        start = self._batches_done * self._loader.batch_size
        numbers = self._order[start : start + self._loader.batch_size]
        self._batches_done += 1
        return self._loader.batch(numbers)

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
    """The book's loader: windows of `txt` in batches. Arguments and errors are those of GPTDatasetV1 and DataLoader.

    num_workers   accepted because the book's calls have it; it has no effect, because all batches are made in this
                  process
    tokenizer     None: GPT-2's
    """
    dataset = GPTDatasetV1(txt, tokenizer or get_tokenizer("gpt2"), max_length, stride)
    return DataLoader(dataset, batch_size, shuffle=shuffle, drop_last=drop_last, rng=rng)
