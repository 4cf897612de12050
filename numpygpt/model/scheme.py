"""How a training run is shared among processes: what `--parallel fsdp=4,tp=2` says.

Each process has a device of its own. The processes form a grid of pp x ddp x fsdp x tp, and each axis shares another
thing:

    ddp    the sequences of a batch; each process holds the whole model (data parallel, Li et al. 2020,
           arXiv:2006.15704)
    fsdp   the sequences, and also weights, gradients and optimizer state, a slice a process (fully sharded data
           parallel, Zhao et al. 2023, arXiv:2304.11277; it is stage 3 of ZeRO, Rajbhandari et al. 2020,
           arXiv:1910.02054)
    tp     the heads, the hidden features and the vocabulary of every layer (tensor parallel, Shoeybi et al. 2019,
           arXiv:1909.08053)
    pp     the blocks, a stage of consecutive ones a process (pipeline parallel, Huang et al. 2018, arXiv:1811.06965)
"""

import math
from typing import NamedTuple

from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig

EXAMPLE = "for example fsdp=4,tp=2"
#: A number of processes has at most so many digits.
MOST_DIGITS = 9


class Scheme(NamedTuple):
    """The processes along each axis of the grid; 1 for an axis that is not used."""

    ddp: int = 1
    fsdp: int = 1
    tp: int = 1
    pp: int = 1

    @classmethod
    def of(cls, text: str | None, n_processes: int | None) -> "Scheme":
        """The scheme that the value of `--parallel` names.

        text          axes with numbers of processes, such as "ddp=8" or "fsdp=4,tp=2"; one axis may lack its number,
                      and then takes what the others leave; None means ddp
        n_processes   how many processes there are; None if the text alone says it

        Raises InputError for an unknown axis, an axis that is named twice, a number that is none, two axes without a
        number, and numbers whose product is not that of the processes.
        """
        given = _numbers("ddp" if text is None else text)
        open_axes = [axis for axis, number in given.items() if number is None]
        numbers = {axis: number for axis, number in given.items() if number is not None}
        if len(open_axes) > 1:
            raise InputError(f"--parallel {text}: {' and '.join(open_axes)} lack their numbers; at most one axis may")
        product = math.prod(numbers.values())
        if n_processes is None:
            if open_axes:
                axis = open_axes[0]
                raise InputError(f"--parallel {text}: expected how many processes {axis} has, as in {axis}=8")
        elif open_axes:
            if n_processes % product:
                raise InputError(
                    f"--parallel {text}: {_processes(n_processes)} cannot be shared by {product}; change the numbers, "
                    f"or how many processes torchrun starts"
                )
            numbers[open_axes[0]] = n_processes // product
        elif product != n_processes:
            raise InputError(
                f"--parallel {text} is for {_processes(product)}, and there {_are(n_processes)}: change the numbers, "
                f"or how many processes torchrun starts"
            )
        return cls(**numbers)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return math.prod(self)

    @property
    def data(self) -> int:
        """Among how many processes the sequences of a batch are shared."""
        return self.ddp * self.fsdp

    def __str__(self) -> str:
        """As `of` reads it: the axes that are used, or ddp=1."""
        return ",".join(f"{axis}={number}" for axis, number in self._asdict().items() if number > 1) or "ddp=1"

    def check(self, config: GPTConfig) -> None:
        """Raise InputError if a model of this configuration cannot be shared so."""
        if config.n_heads % self.tp:
            raise InputError(
                f"tp={self.tp} does not divide n_heads {config.n_heads}: each process computes n_heads / tp heads; "
                f"change one of the two"
            )
        if config.n_layers < self.pp:
            raise InputError(
                f"pp={self.pp} is more than n_layers {config.n_layers}: each stage has at least one block; make pp "
                f"smaller"
            )


def _numbers(text: str) -> dict[str, int | None]:
    """The axes of the text with their numbers; None for an axis without one."""
    numbers: dict[str, int | None] = {}
    for entry in text.split(","):
        axis, equals, number = (part.strip() for part in entry.partition("="))
        if axis not in Scheme._fields:
            raise InputError(
                f"--parallel {text}: there is no scheme {axis!r}; expected some of {', '.join(Scheme._fields)}, "
                f"{EXAMPLE}"
            )
        if axis in numbers:
            raise InputError(f"--parallel {text}: {axis} is named twice; name it once")
        numbers[axis] = _number(text, axis, number) if equals else None
    return numbers


def _number(text: str, axis: str, number: str) -> int:
    if not (number.isascii() and number.isdigit() and len(number) <= MOST_DIGITS and int(number)):
        raise InputError(f"--parallel {text}: {axis}={number}; expected a number of processes, 1 or more, {EXAMPLE}")
    return int(number)


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def _are(number: int) -> str:
    return "is 1" if number == 1 else f"are {number}"
