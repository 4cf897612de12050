"""The processes of a run, joined as torchrun's environment says: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

Every exchange between processes has a time limit, so that none waits forever for one that has died.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from numpygpt.errors import InputError
from numpygpt.training.team import OneProcess

Result = TypeVar("Result")
Value = TypeVar("Value")

#: Seconds that an exchange between processes may take, if nobody says otherwise.
TIME_LIMIT = 600.0

#: What torchrun tells the processes that it starts again after one of them has died.
RESTARTS = "TORCHELASTIC_RESTART_COUNT"
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LARGEST_PORT = 65_535


class ProcessTeam:
    """A `numpygpt.training.team.Team` of several processes. Make it with `join`.

    rank         the number of this process, from 0
    size         how many processes there are
    time_limit   seconds that an exchange between processes may take
    """

    def __init__(self, time_limit: float) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.time_limit = time_limit

    @property
    def is_first(self) -> bool:
        """See `Team`."""
        return self.rank == 0

    @cached_property
    def saving_group(self) -> dist.ProcessGroup:
        """All processes again, for exchanges from a thread beside the training. They ask for it at the same time."""
        return dist.new_group(backend="gloo", timeout=timedelta(seconds=self.time_limit))

    def any(self, flag: bool) -> bool:
        """See `Team`."""
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def first_does(self, action: Callable[[], Result]) -> Result:
        """See `Team`. Of any other exception the other processes get the words, in a RuntimeError."""
        outcome = _outcome_of(action) if self.is_first else None
        sent = [outcome.as_told(self.rank) if outcome else None]
        dist.broadcast_object_list(sent, src=0)
        return _result(outcome or sent[0])

    def agree(self, action: Callable[[], Result]) -> Result:
        """See `Team`. Of any other exception the other processes get the words, in a RuntimeError."""
        outcome = _outcome_of(action)
        told = self.gather(_Outcome(None, outcome.as_told(self.rank).error))
        if outcome.error is not None and not isinstance(outcome.error, InputError):
            raise outcome.error
        for other in told:
            _result(other)
        return _result(outcome)

    def gather(self, value: Value) -> list[Value]:
        """The value of every process, by rank, in every process. Values are pickled on the way."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def gather(team: OneProcess | ProcessTeam, value: Value) -> list[Value]:
    """The value of every process of either kind of team, by rank."""
    return team.gather(value) if isinstance(team, ProcessTeam) else [value]


def join(*, on_gpus: bool = False, time_limit: float = TIME_LIMIT) -> OneProcess | ProcessTeam:
    """The team that torchrun's environment describes; a team of one, without any connection, if it describes none.

    on_gpus      whether tensors on CUDA have to travel, by NCCL; all others travel by Gloo
    time_limit   seconds that an exchange may take, and joining, too

    Raises InputError for an environment that is incomplete or holds no numbers, for a port that another program uses,
    and if the other processes cannot be reached in time.
    """
    environment = {name: os.environ.get(name, "") for name in VARIABLES}
    if not any(environment.values()):
        return OneProcess()
    _check(environment)
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=time_limit)))
        # torchrun may keep the store when it starts all processes again, and what the dead ones said must not be read
        store = PrefixStore(f"start {os.environ.get(RESTARTS, '0')}", store)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=time_limit)
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(_why_not_joined(error, environment, time_limit)) from error
    return ProcessTeam(time_limit)


@contextmanager
def connected() -> Iterator[None]:
    """Within the `with`, a process that has died, or does not answer in time, is an InputError of one line.

    PyTorch's own error has the details. It is the cause of the InputError.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise InputError(
            f"process {environment_rank()} has lost another process of the run: {_first_line(error)}; see what that "
            f"one said, and resume from the last checkpoint"
        ) from error


def leave() -> None:
    """End the connections of this process, if it has any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def environment_rank() -> int:
    """The number that torchrun's environment gives this process, whether it has joined or not; 0 if there is none."""
    rank = os.environ.get("RANK", "")
    return int(rank) if _is_number(rank) else 0


class _Outcome(NamedTuple):
    """What an action returned, or the exception that it raised."""

    value: Any
    error: Exception | None

    def as_told(self, rank: int) -> "_Outcome":
        """The same for the other processes: an InputError travels, of any other exception they get the words."""
        if self.error is None or isinstance(self.error, InputError):
            return self
        return _Outcome(None, RuntimeError(f"process {rank} failed: {type(self.error).__name__}: {self.error}"))


def _outcome_of(action: Callable[[], Any]) -> _Outcome:
    try:
        return _Outcome(action(), None)
    except Exception as error:
        return _Outcome(None, error)


def _result(outcome: Any) -> Any:
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _check(environment: dict[str, str]) -> None:
    """Raise InputError unless the environment's four variables can be used."""
    missing = [name for name, value in environment.items() if not value]
    if missing:
        present = [name for name in environment if name not in missing]
        raise InputError(
            f"the environment has {', '.join(present)} but not {', '.join(missing)}: start the processes with "
            f"torchrun, which sets all of them, or unset what is there to use one process"
        )
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        if not _is_number(environment[name]):
            raise InputError(f"{name} in the environment is {environment[name]!r}; expected a number: use torchrun")
    rank, size, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if rank >= size:
        raise InputError(f"RANK in the environment is {rank}; expected a number below WORLD_SIZE {size}: use torchrun")
    if not 0 < port <= LARGEST_PORT:
        raise InputError(f"MASTER_PORT in the environment is {port}; expected 1 to {LARGEST_PORT}")


def _why_not_joined(error: Exception, environment: dict[str, str], time_limit: float) -> str:
    address = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
        return f"the port of {address} is in use by another program: choose another one (torchrun --master-port)"
    return (
        f"process {environment['RANK']} could not join the {environment['WORLD_SIZE']} processes at {address} within "
        f"{time_limit:g} s: {_first_line(error)}; see whether all of them have started and can reach it"
    )


def _first_line(error: Exception) -> str:
    return f"{str(error).splitlines()[0]:.160}"
