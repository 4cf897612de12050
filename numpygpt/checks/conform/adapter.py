"""How an implementation is asked for a case, and what it answers.

An adapter in Python is a class with one method, and says what it does not do:

    class Adapter:
        rungs = ("forward", "gradients")             # optional; what it computes: all, unless it says so
        not_shown = ("d_*.att.*",)                   # optional; patterns of names that it does not show
        format = "float64"                           # optional; the number format that it computes in

        def unable(self, config, settings):          # optional
            return "no dropout" if config.drop_rate else None

        def run(self, config, settings, given):
            return {"logits": ..., "loss": ..., "d_tok_emb.weight": ...}

`run` gets a `GPTConfig`, the `Settings` of a trace, and what the trace gives: parameters, token ids, dropout masks and
the prompt, as NumPy arrays by name. It returns arrays under the names of `docs/trace-format.md`. What it does not name
in `rungs` and `not_shown` must be there; all that is there is judged.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from numpygpt.checks.budgets import FORMATS
from numpygpt.checks.conform.cases import Case
from numpygpt.checks.conform.rungs import RUNGS, rung_of
from numpygpt.checks.lookup import imported
from numpygpt.checks.pairs import place_of
from numpygpt.checks.trace_file import TraceFile
from numpygpt.errors import InputError
from numpygpt.shapes import Array

#: The most characters of a message of theirs that is told.
LONGEST_MESSAGE = 300


class Fault(Exception):  # noqa: N818
    """Why an implementation gave no answer that can be judged, in a line. It is a failure, and no bad input of ours."""


class TooSlow(Fault):
    """It did not end within the time limit; `printed` is what it had printed to standard error by then, at its end."""

    def __init__(self, message: str, printed: bytes = b"") -> None:
        super().__init__(message)
        self.printed = printed


class Computed(NamedTuple):
    """What an implementation answers.

    tensors     {name of a trace: array}
    format      the number format that they were computed in, one of `budgets.FORMATS`
    rungs       what it computes
    not_shown   patterns of names that it does not show, although it computes their rung
    unable      why it cannot compute this case; "": it can
    """

    tensors: Mapping[str, Array]
    format: str
    rungs: tuple[str, ...] = RUNGS
    not_shown: tuple[str, ...] = ()
    unable: str = ""

    def must_show(self, name: str) -> bool:
        """Whether the tensor of this name has to be there."""
        return rung_of(name) in self.rungs and not any(fnmatchcase(name, pattern) for pattern in self.not_shown)


@runtime_checkable
class Port(Protocol):
    """An implementation, of whatever kind."""

    def compute(self, case: Case, reference: TraceFile, folder: Path) -> Computed:
        """What it computes of a case. `folder` is empty, and for its files. Raises Fault."""


class InProcess:
    """An adapter in Python, as the docstring of this module describes it. InputError unless it is one."""

    def __init__(self, adapter: Any, name: str) -> None:
        if not callable(getattr(adapter, "run", None)):
            raise InputError(f"{name} has no method run(config, settings, given); expected an adapter")
        self.adapter, self.name = adapter, name
        self.rungs = rungs_among(_texts(adapter, "rungs", RUNGS, name), name)
        self.not_shown = _texts(adapter, "not_shown", (), name)
        self.format = getattr(adapter, "format", "float64")
        if self.format not in FORMATS:
            raise InputError(f"format of {name} is {self.format!r:.80}; expected one of: {', '.join(FORMATS)}")

    def compute(self, case: Case, reference: TraceFile, folder: Path) -> Computed:
        """What its `run` returns for copies of what is given."""
        unable = getattr(self.adapter, "unable", None)
        reason = None if unable is None else self._called(unable, case.config, case.settings)
        if reason:
            return Computed({}, self.format, self.rungs, self.not_shown, one_line(str(reason)))
        found = self._called(self.adapter.run, case.config, case.settings, reference.given())
        if not isinstance(found, Mapping):
            raise Fault(f"run returns a {type(found).__name__}; expected a dict of arrays")
        tensors = {str(name): _array(str(name), array) for name, array in found.items()}
        return Computed(tensors, self.format, self.rungs, self.not_shown)

    def _called(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except SystemExit as error:
            raise Fault(f"{function.__name__} {_ended(error)}") from error
        except Exception as error:
            raise Fault(one_line(f"raises {type(error).__name__}: {error}{place_of(error)}")) from error


def find_adapter(name: str) -> InProcess:
    """The adapter `package.module:Adapter`: a class, a function that makes one, or an instance.

    InputError if there is none, or if importing or making it raises an exception or ends the program.
    """
    module_name, _, path = name.partition(":")
    if not path:
        raise InputError(f"--adapter is {name!r}; expected package.module:Adapter")
    try:
        found: Any = imported(module_name)
    except SystemExit as error:
        raise InputError(f"importing {module_name} {_ended(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise InputError(f"{module_name} has no {path}; expected an adapter with a method run")
        found = getattr(found, part)
    is_maker = isinstance(found, type) or not hasattr(found, "run")
    if is_maker and callable(found):
        try:
            found = found()
        except ImportError:
            raise
        except SystemExit as error:
            raise InputError(f"making the adapter {name} {_ended(error)}") from error
        except Exception as error:
            reason = one_line(f"{type(error).__name__}: {error}{place_of(error)}")
            raise InputError(f"making the adapter {name} raises {reason}") from error
    return InProcess(found, name)


def _ended(error: SystemExit) -> str:
    return one_line(f"ends the program: SystemExit({error.code!r})")


def rungs_among(found: tuple[str, ...], whose: str) -> tuple[str, ...]:
    """Those rungs. InputError for one that there is not."""
    unknown = [rung for rung in found if rung not in RUNGS]
    if unknown:
        raise InputError(f"{whose} names the rung {unknown[0]!r:.80}; expected some of: {', '.join(RUNGS)}")
    return found


def one_line(text: str) -> str:
    """The text in one line without anything that cannot be printed, and not too long."""
    line = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in line[:LONGEST_MESSAGE])


def _texts(adapter: Any, attribute: str, default: tuple[str, ...], name: str) -> tuple[str, ...]:
    found = getattr(adapter, attribute, default)
    if isinstance(found, str) or not all(isinstance(text, str) for text in found):
        raise InputError(f"{attribute} of {name} is {found!r:.80}; expected a tuple of texts")
    return tuple(found)


def _array(name: str, found: Any) -> Array:
    """What was returned as an array of real numbers. Fault for anything else."""
    try:
        array = np.asarray(found)
    except Exception as error:
        raise Fault(one_line(f"{name} is no array: {error}")) from error
    if array.dtype.kind not in "biuf":
        raise Fault(f"{name} is of dtype {array.dtype}; expected real numbers (bfloat16 as float32)")
    return array
