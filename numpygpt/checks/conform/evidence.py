"""What is kept of a failure, and its diagnosis.

The case is asked for once more, unless it exceeded the time limit, and a folder of its name gets

    reference.safetensors   the trace of the reference
    candidate.safetensors   what the implementation computed, if it answered: `numpygpt diff` compares the two
    case.json               what a program is asked, with given.safetensors: so it can be run on the folder by hand
    given.safetensors
    stderr.txt              what the program printed to standard error

The diagnosis is that of `numpygpt diff`. It is made for the case that failed, and not for the smallest model that fails
in the same way: with one head, one feature or one token, many causes give the same tensors.
"""

import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from numpygpt.checks.conform.adapter import Computed, Port
from numpygpt.checks.conform.cases import Case, reference
from numpygpt.checks.conform.judging import PORT, REFERENCE, Asked, Outcome, ask, candidate_of
from numpygpt.checks.conform.process import CASE, ERRORS, GIVEN, Program
from numpygpt.checks.diagnose import diagnose
from numpygpt.checks.diff import diff
from numpygpt.checks.trace_file import TraceFile
from numpygpt.errors import InputError
from numpygpt.formats.tensor_file import DTYPES, write_tensors

CANDIDATE = "candidate.safetensors"
NOT_AGAIN = "it did not fail when it was asked again: is it random?"


class Evidence(NamedTuple):
    """What was found out about a failure.

    diagnosis   lines that say why the first wrong tensors are wrong; empty if nothing was answered
    commands    command lines that show more, of the case that failed and of the smallest model that fails so
    """

    diagnosis: list[str]
    commands: list[str]

    @property
    def lines(self) -> list[str]:
        """All of it."""
        return [*self.diagnosis, *(f"to look further: {command}" for command in self.commands)]


def gather(
    port: Port, failures: Iterable[Outcome], smallest: Mapping[str, Outcome], by: str | None, folder: Path
) -> dict[str, Evidence]:
    """The evidence of each failure, by the name of its case; `folder` gets a folder for each.

    smallest   {name of a case that failed: the outcome of the smallest model that fails in the same way}
    by         who finds the budgets, as `budgets_of` takes it

    InputError if a file cannot be written.
    """
    found = {}
    for failure in failures:
        evidence = evidence_of(port, failure, by, folder)
        smaller = smallest.get(failure.case.name, failure).case
        if smaller != failure.case:
            of_smallest = examine(port, smaller, by, folder, diagnosing=False)
            evidence = evidence._replace(commands=evidence.commands + of_smallest.commands)
        found[failure.case.name] = evidence
    return found


def evidence_of(port: Port, failure: Outcome, by: str | None, folder: Path) -> Evidence:
    """The evidence of one failure. Who exceeded the time limit is not asked again."""
    if failure.too_slow and isinstance(port, Program):
        return _of_slow(port, failure, by, folder)
    return examine(port, failure.case, by, folder)


def _of_slow(port: Program, failure: Outcome, by: str | None, folder: Path) -> Evidence:
    """Keep what a program that exceeded the time limit was asked, and what it had printed, without asking again."""
    kept = folder / failure.case.name
    try:
        kept.mkdir(parents=True, exist_ok=True)
        _remove_earlier(kept)
        port.prepare(failure.case, reference(failure.case, kept / REFERENCE, by), kept)
        (kept / ERRORS).write_bytes(failure.printed)
    except OSError as error:
        raise InputError(f"cannot write {kept}: {error.strerror or error}; name another --keep") from error
    return Evidence([], [shlex.join([*port.words, str(kept)])])


def _remove_earlier(kept: Path) -> None:
    """Remove the files of an earlier run."""
    for name in (CANDIDATE, CASE, GIVEN, ERRORS):
        (kept / name).unlink(missing_ok=True)


def examine(port: Port, case: Case, by: str | None, folder: Path, *, diagnosing: bool = True) -> Evidence:
    """Ask for a case that failed once more, keep its files in `folder / case.name`, and diagnose what is wrong."""
    kept = folder / case.name
    with TemporaryDirectory(prefix="numpygpt-conform-") as temporary:
        asked = ask(port, case, by, Path(temporary))
        try:
            _keep(asked, Path(temporary) / PORT, kept)
        except OSError as error:
            raise InputError(f"cannot write {kept}: {error.strerror or error}; name another --keep") from error
        diagnosis = _diagnosis(asked) if diagnosing else []
    return Evidence(diagnosis, _commands(asked, port, kept))


def _keep(asked: Asked, of_port: Path, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    _remove_earlier(kept)
    shutil.copyfile(asked.truth.path, kept / REFERENCE)
    for name in (CASE, GIVEN, ERRORS):
        if (of_port / name).is_file():
            shutil.copyfile(of_port / name, kept / name)
    if asked.computed is not None:
        tensors = {name: _storable(array) for name, array in asked.computed.tensors.items()}
        write_tensors(kept / CANDIDATE, tensors, {"format": "numpygpt.candidate"})


def _storable(array: np.ndarray) -> np.ndarray:
    """The array in C order, in a dtype and byte order that the file has."""
    name = array.dtype.name if array.dtype.name in DTYPES.values() else "float64"
    return np.ascontiguousarray(array, name).reshape(array.shape)


def _diagnosis(asked: Asked) -> list[str]:
    """The lines of the diagnosis, from those tensors of the answer that the trace has."""
    if not asked.outcome.failed:
        return [NOT_AGAIN]
    if asked.computed is None or asked.outcome.fault:
        return []
    candidate = candidate_of(asked.computed)
    diagnoses = diagnose(asked.truth, candidate, diff(asked.truth, candidate))
    return [line for diagnosis in diagnoses for line in diagnosis.lines]


def _commands(asked: Asked, port: Port, kept: Path) -> list[str]:
    if asked.computed is None:
        return [shlex.join([*port.words, str(kept)])] if isinstance(port, Program) else []
    words = ["numpygpt", "diff", str(kept / REFERENCE), str(kept / CANDIDATE), "--dtype", asked.computed.format]
    return [shlex.join([*words, *(["--partial"] if _is_partial(asked.computed, asked.truth) else [])])]


def _is_partial(computed: Computed, truth: TraceFile) -> bool:
    """Whether the answer need not have every tensor."""
    return not all(computed.must_show(name) for name in truth.order if name not in truth.given())
