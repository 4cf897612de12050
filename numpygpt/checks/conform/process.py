"""A program in any language as an implementation (docs/conformance.md has the protocol for whoever writes one).

For each case the command is started with one more argument, the path of a folder:

    case.json              what is asked: the version of the protocol, configuration and settings
    given.safetensors      parameters, token ids, dropout masks and the prompt
    computed.safetensors   what the program writes; its metadata may name `rungs` and `not_shown`, separated by spaces
    unable.txt             what it writes instead, if it cannot compute the case: why
"""

import json
import os
import shlex
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np

from numpygpt.checks.budgets import FORMATS
from numpygpt.checks.conform.adapter import Computed, Fault, TooSlow, one_line, rungs_among
from numpygpt.checks.conform.cases import Case
from numpygpt.checks.conform.rungs import RUNGS
from numpygpt.checks.trace_file import TraceFile
from numpygpt.errors import InputError
from numpygpt.formats.tensor_file import TensorFile, write_tensors
from numpygpt.reading import read_file

PROTOCOL = 1
CASE, GIVEN, COMPUTED, UNABLE = "case.json", "given.safetensors", "computed.safetensors", "unable.txt"
ERRORS = "stderr.txt"
#: The last bytes of what a program prints to standard error, and the most that a reason may have.
TAIL = 4000


class Program:
    """A program that is started for each case. InputError for a command that cannot be split into words.

    command   as a shell would take it; no shell runs it
    timeout   the most seconds for a case
    computes  the number format that it computes in; None: the shortest dtype in its answer says it
    """

    def __init__(self, command: str, timeout: float, computes: str | None = None) -> None:
        try:
            self.words = shlex.split(command)
        except ValueError as error:
            raise InputError(f"--command is {command!r:.80}: {error}") from error
        if not self.words:
            raise InputError("--command is empty; expected a program, such as ./my_port")
        self.timeout, self.computes = timeout, computes

    def compute(self, case: Case, reference: TraceFile, folder: Path) -> Computed:
        """What the program writes. Fault if it ends badly, or writes what cannot be read."""
        self.prepare(case, reference, folder)
        self._run(folder)
        try:
            return self._answer(folder, reference)
        except InputError as error:
            raise Fault(one_line(str(error).replace(f"{folder}/", ""))) from error

    def prepare(self, case: Case, reference: TraceFile, folder: Path) -> None:
        """Write what the program is asked into the folder."""
        asked = {"protocol": PROTOCOL, "config": case.config.to_dict(), "settings": case.settings._asdict()}
        (folder / CASE).write_text(json.dumps(asked) + "\n", encoding="utf-8")
        given = {name: np.ascontiguousarray(array) for name, array in reference.given().items()}
        write_tensors(folder / GIVEN, given, {"format": "numpygpt.given"})

    def _run(self, folder: Path) -> None:
        """Run it in a process group of its own, of which nothing is left afterwards."""
        with (folder / ERRORS).open("wb") as errors:
            try:
                process = subprocess.Popen(
                    [*self.words, str(folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
            except OSError as error:
                raise InputError(f"cannot run {self.words[0]}: {error.strerror}; name another --command") from error
            try:
                status = process.wait(self.timeout)
            except subprocess.TimeoutExpired as error:
                raise TooSlow(f"did not end within {self.timeout:g} s", _tail(folder / ERRORS)) from error
            finally:
                with suppress(ProcessLookupError, PermissionError):  # macOS: PermissionError if all have ended
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if status:
            raise Fault(f"{_ending(status)}{_last_line(folder / ERRORS)}")

    def _answer(self, folder: Path, reference: TraceFile) -> Computed:
        if (folder / UNABLE).exists():
            reason = read_file(folder / UNABLE, "reason", TAIL).decode(errors="replace")
            return Computed({}, self.computes or "float64", unable=one_line(reason) or "it does not say why")
        if not (folder / COMPUTED).exists():
            raise Fault(f"wrote no {COMPUTED}{_last_line(folder / ERRORS)}")
        file = TensorFile(folder / COMPUTED, "answer", bfloat16=True)
        known = set(reference.order)
        tensors = {name: file.read(name) if name in known else np.empty(0) for name in file.layouts}
        words = {key: tuple(file.metadata[key].split()) for key in ("rungs", "not_shown") if key in file.metadata}
        return Computed(
            tensors,
            self.computes or _shortest(file),
            rungs_among(words.get("rungs", RUNGS), "its answer"),
            words.get("not_shown", ()),
        )


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    return f"was ended by signal {-status} ({signal.strsignal(-status) or 'unknown'})"


def _last_line(path: Path) -> str:
    """The last line of what it printed to standard error; empty if there is none."""
    lines = [line for line in _tail(path).decode(errors="replace").splitlines() if line.strip()]
    return f": {one_line(lines[-1])}" if lines else ""


def _tail(path: Path) -> bytes:
    """The last TAIL bytes of the file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        return file.read()


def _shortest(file: TensorFile) -> str:
    """The format of the shortest floating-point dtype in the file."""
    formats = {layout.dtype for layout in file.layouts.values()} & set(FORMATS)
    return max(formats, key=lambda format_: FORMATS[format_], default="float64")
