"""Checkpoints that every process writes its own slices of, and that any number of processes can read.

A checkpoint is a folder with a safetensors file a process, which PyTorch's distributed checkpointing writes and reads,
and `values.json`: the values that were saved with the tensors, and the SHA-256 of every file. Nothing in it is a
pickle. The folder appears under its name in one step, when all files are written.
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
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_slices
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from numpygpt.errors import InputError
from numpygpt.files import replacing_folder
from numpygpt.training.team import OneProcess
from torchgpt.parallel.team import ProcessTeam, gather

Result = TypeVar("Result")

VALUES = "values.json"


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


def load(folder: Path, tensors: Mapping[str, Tensor], team: OneProcess | ProcessTeam) -> dict[str, Any]:
    """Fill the tensors, in place, with those that were saved under their names; returns the values.

    tensors   {name: tensor} of what this process has, cut in any way, whatever the processes were that saved them

    All processes call this together. Raises InputError, with the tensors as they were, for a folder that is no
    checkpoint, for files that are missing or damaged, and for names, shapes and dtypes that are not those of the
    tensors.
    """
    saved = team.first_does(lambda: _read_values(folder))
    names = {name for own in gather(team, list(tensors)) for name in own}
    team.agree(lambda: _check_files(folder, saved["sha256"], team))
    team.agree(lambda: _check_tensors(folder, tensors, names))
    reader = HuggingFaceStorageReader(str(folder))
    if isinstance(team, ProcessTeam):
        load_slices(dict(tensors), storage_reader=reader, process_group=team.saving_group)
    else:
        _done(lambda: load_slices(dict(tensors), storage_reader=reader, no_dist=True)).result()
    values: dict[str, Any] = saved["values"]
    return values


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


def _read_values(folder: Path) -> dict[str, Any]:
    try:
        saved = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no checkpoint in slices: {VALUES}: {_reason(error)}") from error
    if not isinstance(saved, dict) or not all(isinstance(saved.get(key), dict) for key in ("values", "sha256")):
        raise InputError(f"{folder} is no checkpoint in slices: {VALUES} lacks values or sha256; expected both")
    return saved


def _check_files(folder: Path, checksums: Mapping[str, str], team: OneProcess | ProcessTeam) -> None:
    """Each process reads some of the files, and says which of them are not what was written."""
    rank = team.rank if isinstance(team, ProcessTeam) else 0
    for name in sorted(checksums)[rank :: team.size]:
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise InputError(f"the checkpoint {folder} lacks a file: {name}: {_reason(error)}") from error
        if found != checksums[name]:
            raise InputError(f"{name} in the checkpoint {folder} is damaged: its SHA-256 is not the one in {VALUES}")


def _check_tensors(folder: Path, tensors: Mapping[str, Tensor], names: set[str]) -> None:
    saved: Mapping[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    missing, unexpected = sorted(names - saved.keys()), sorted(saved.keys() - names)
    if missing or unexpected:
        raise InputError(
            f"the checkpoint {folder} has other tensors: missing: {', '.join(missing) or 'none'}; "
            f"unexpected: {', '.join(unexpected) or 'none'}; load it into a model of its own configuration"
        )
    for name, tensor in tensors.items():
        found, expected = (tuple(saved[name].size), saved[name].properties.dtype), (tuple(tensor.shape), tensor.dtype)
        if found != expected:
            raise InputError(f"{name} in the checkpoint {folder} is {_words(*found)}; expected {_words(*expected)}")


def _words(shape: tuple[int, ...], dtype: Any) -> str:
    return f"{shape} {str(dtype).removeprefix('torch.')}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: BaseException) -> str:
    """The first line of what an error says."""
    return f"{getattr(error, 'strerror', None) or str(error)}".strip().splitlines()[0][:200]
