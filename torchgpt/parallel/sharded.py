"""Checkpoints that every process writes its own slices of. `numpygpt.formats.slices` reads them, in any process.

A checkpoint is a folder with a safetensors file a process, which PyTorch's distributed checkpointing writes, and
`values.json`: the values that were saved with the tensors, and the SHA-256 of every file. Nothing in it is a pickle.
The folder appears under its name in one step, when all files are written.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from numpygpt.errors import InputError
from numpygpt.files import replacing_folder
from numpygpt.formats.slices import VALUES
from numpygpt.training.team import OneProcess
from torchgpt.parallel.team import ProcessTeam, gather

Result = TypeVar("Result")



class Saving:
    """A checkpoint that is being written. Its tensors were copied before, so that the next step may change them."""

    def __init__(
        self,
        folder: Path,
        values: Mapping[str, Any],
        team: OneProcess | ProcessTeam,
        unfinished: Path,
        to_move: ExitStack,
        writing: Future[Any],
    ) -> None:
        self._folder, self._values, self._team = folder, values, team
        self._unfinished, self._to_move, self._writing = unfinished, to_move, writing

    def is_done(self) -> bool:
        """Whether this process has written its file."""
        return self._writing.done()

    def wait(self) -> None:
        """Wait until every file is written and the folder has its name. All processes call this together, once.

        Raises InputError if a file cannot be written; then the folder is as it was before.
        """
        with self._to_move:
            own = self._team.agree(self._checksums)
            every = {name: checksum for checksums in gather(self._team, own) for name, checksum in checksums.items()}
            self._team.first_does(lambda: self._write_values(every))
            written = self._to_move.pop_all()
        self._team.first_does(lambda: self._writes(written.close))

    def _checksums(self) -> dict[str, str]:
        """{name: SHA-256} of the files of this process, when they are written."""
        self._writes(self._writing.result)
        rank = self._team.rank if isinstance(self._team, ProcessTeam) else 0
        own = self._unfinished.glob(f"shard-{rank + 1:05d}-*.safetensors")  # PyTorch's names
        return self._writes(lambda: {path.name: _sha256(path) for path in own})

    def _write_values(self, checksums: Mapping[str, str]) -> None:
        text = json.dumps({"values": self._values, "sha256": checksums}, indent=1)
        self._writes(lambda: (self._unfinished / VALUES).write_text(text, encoding="utf-8"))

    def _writes(self, action: Callable[[], Result]) -> Result:
        try:
            return action()
        except (OSError, CheckpointException) as error:
            raise InputError(f"the checkpoint {self._folder} cannot be written: {_reason(error)}") from error


def start_saving(
    folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], team: OneProcess | ProcessTeam
) -> Saving:
    """Copy the tensors, and write them in a thread while the training goes on. `Saving.wait` has to end it.

    A process that is alone writes them at once.

    folder    the checkpoint; an older one at its place stays until the new one is written
    tensors   {name: tensor} of what this process has: slices as PyTorch's DTensors (`ParallelModel.distributed`), or
              whole tensors; a whole tensor that several processes have is written once
    values    what JSON can hold; those of the first process are written

    All processes call this together. Raises InputError if the folder's parent cannot be written to.
    """
    to_move = ExitStack()

    def new_folder() -> Path:
        try:
            return to_move.enter_context(replacing_folder(folder))
        except OSError as error:
            raise InputError(f"the checkpoint {folder} cannot be written: {_reason(error)}") from error

    unfinished = team.first_does(new_folder)
    writer = HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
    if isinstance(team, ProcessTeam):
        writing = async_save(dict(tensors), storage_writer=writer, process_group=team.saving_group)
    else:
        writing = _done(lambda: save(dict(tensors), storage_writer=writer, no_dist=True))
    assert isinstance(writing, Future)
    return Saving(folder, values, team, unfinished, to_move, writing)


def _done(action: Callable[[], Any]) -> Future[Any]:
    """The future of an action that is done here and now, without PyTorch's warning that there is one process."""
    future: Future[Any] = Future()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            future.set_result(action())
        except (Exception, CheckpointException) as error:
            future.set_exception(error)
    return future


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: BaseException) -> str:
    """The first line of what an error says."""
    return f"{getattr(error, 'strerror', None) or str(error)}".strip().splitlines()[0][:200]
