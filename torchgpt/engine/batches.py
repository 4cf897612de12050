"""The micro-batches of a run, put on its device one ahead, by a thread, while the one before is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from numpygpt.data.loader import Batches, DataLoader, Position
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.shapes import Array
from torchgpt.parallel.placed import Placed


class Taken(NamedTuple):
    """A micro-batch.

    whole       its inputs and targets (B, T), those of all processes
    placed      this process's rows of it, on the device
    n_targets   how many of its targets count
    position    how far the epoch has come with it
    """

    whole: tuple[Array, Array]
    placed: Placed
    n_targets: int
    position: Position


class Ahead:
    """Micro-batches of a loader, epoch after epoch, in its order and with its draws.

    Only a batch of an epoch that has begun is taken ahead. So every draw of an epoch's order comes when its first batch
    is asked for, as without the thread, and a dropout mask that is drawn from the same generator stays the same.
    """

    def __init__(self, loader: DataLoader, batches: Batches, place: Callable[[Array, Array], Placed]) -> None:
        self._loader, self._batches, self._place = loader, batches, place
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: Future[Taken] | None = None
        self.position = batches.position

    def take(self) -> Taken:
        """The next micro-batch."""
        taken = self._next.result() if self._next is not None else self._first_of_an_epoch()
        self.position = taken.position
        self._next = self._thread.submit(self._taken) if len(self._batches) else None
        return taken

    def _first_of_an_epoch(self) -> Taken:
        if not len(self._batches):
            self._batches = iter(self._loader)
        return self._taken()

    def _taken(self) -> Taken:
        inputs, targets = next(self._batches)
        n_targets = int(np.count_nonzero(targets != IGNORE_INDEX))
        return Taken((inputs, targets), self._place(inputs, targets), n_targets, self._batches.position)
