"""A TensorFlow checkpoint, read by TensorFlow in a process of its own.

    checkpoint                          a text that names the newest checkpoint of the folder
    model.ckpt.index                    the variables' names, dtypes, shapes and places
    model.ckpt.data-00000-of-00001      their values

TensorFlow is kept out of our process, because for some damaged index files it ends the process that it is in, without
an exception. With a process of its own, its memory goes too, and its libraries never meet PyTorch's.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import weakref
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

from numpygpt.errors import InputError
from numpygpt.reading import inside, read_file
from numpygpt.sections import Layout
from numpygpt.shapes import Array

#: The text that names the newest checkpoint of a folder.
STATE = "checkpoint"
#: The most bytes of that text, which has 100.
MOST_BYTES_OF_STATE = 2**12
#: The most bytes of an index, and of what is printed of it; that of the largest GPT-2 has some 20,000.
MOST_BYTES_OF_INDEX = 2**22

PROGRAM = Path(__file__).with_name("tensorflow_process.py")
#: No log but what ends the process, no GPU, and no warning about the order in which it adds up.
SETTINGS = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "TF_ENABLE_ONEDNN_OPTS": "0"}


def newest_checkpoint(folder: Path) -> str:
    """The name of a folder's newest checkpoint: "model.ckpt", of the files model.ckpt.index and so on.

    Raises InputError if the file `checkpoint` does not tell it, or names one that is not in the folder.
    """
    text = read_file(inside(folder, STATE), "checkpoint's state", MOST_BYTES_OF_STATE).decode(errors="replace")
    named = re.search(r'^model_checkpoint_path: "(.*)"\s*$', text, re.MULTILINE)
    if named is None:
        raise InputError(f'{folder / STATE} does not name a checkpoint; expected model_checkpoint_path: "model.ckpt"')
    path = Path(named[1])
    is_here = named[1] == path.name or (path.is_absolute() and path.parent.resolve() == folder.resolve())
    if not is_here or not re.fullmatch(r"[\w.-]+", path.name):
        raise InputError(
            f"{folder / STATE} names {named[1]!r:.80}, and nothing outside of its folder is read; "
            f'expected a name such as "model.ckpt"'
        )
    return path.name


class TensorFlowFile:
    """An open TensorFlow checkpoint.

    path      its index
    layouts   {variable: dtype and shape}

    Raises InputError if TensorFlow is not installed, for files that are missing, damaged, truncated, or links to
    elsewhere, and for an index that is larger than that of any GPT-2.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """`name` is that of the checkpoint, without its files' endings."""
        self.path = folder / f"{name}.index"
        read_file(inside(folder, self.path.name), "index of the checkpoint", MOST_BYTES_OF_INDEX)
        data = [inside(folder, path.name) for path in sorted(folder.glob(f"{name}.data-*"))]
        for path in data:
            if not path.is_file():
                raise InputError(f"{path} is no regular file; expected the values of the checkpoint {self.path}")
        self._process, self._errors = _start(folder, name)
        weakref.finalize(self, _end, self._process, self._errors)
        answer = self._pipe("stdout").readline(MOST_BYTES_OF_INDEX)
        if not answer.endswith(b"\n"):
            raise self._failure("cannot be read")
        found = json.loads(answer)
        self.layouts = {variable: Layout(dtype, tuple(shape)) for variable, (dtype, shape) in found.items()}
        self._refuse_truncated(sum(path.stat().st_size for path in data))

    def read(self, name: str) -> Array:
        """The variable of that name, as a new array. InputError if its values cannot be read, or are damaged."""
        try:
            self._pipe("stdin").write(json.dumps(name).encode() + b"\n")
            self._pipe("stdin").flush()
        except (OSError, ValueError) as error:  # it has ended, now or at an earlier question
            raise self._failure(f"does not give {name}") from error
        array = np.empty(self.layouts[name].shape, self.layouts[name].dtype)
        if self._pipe("stdout").readinto(array.data.cast("B")) != array.nbytes:
            raise self._failure(f"does not give {name}")
        return array

    def _pipe(self, name: str) -> Any:
        return getattr(self._process, name)

    def _failure(self, what: str) -> InputError:
        """The last thing that TensorFlow said, as one line."""
        _close(self._process)
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        fatal = [line.partition("] ")[2] for line in lines if re.match(r"F\d{4} ", line)]  # a trace of calls follows it
        said = (fatal or lines or [f"nothing; it ended with status {self._process.returncode}"])[-1]
        return InputError(
            f"the checkpoint {self.path} {what}; TensorFlow says: {said:.200}; fetch its files again, or use another"
        )

    def _refuse_truncated(self, found: int) -> None:
        """InputError unless the data's bytes, of which so many were found, can hold the variables."""
        needed = sum(math.prod(shape) * _bytes_of(dtype) for dtype, shape in self.layouts.values())
        if needed > found:
            raise InputError(
                f"the checkpoint {self.path} is truncated: its variables have {needed} bytes, and its data files "
                f"{found}; fetch them again"
            )


def _bytes_of(dtype: str) -> int:
    """The bytes of a number of this dtype, or 0 if NumPy does not know it: a text, for example."""
    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        return 0


def _start(folder: Path, name: str) -> tuple["subprocess.Popen[bytes]", IO[bytes]]:
    """TensorFlow's process, and a file of what it says.

    It runs in the folder and is told a name alone: TensorFlow takes brackets and stars in a path for patterns.
    """
    if find_spec("tensorflow") is None:
        raise InputError(
            "TensorFlow is not installed, and OpenAI's checkpoints are read with it: pip install 'numpygpt[tf]'"
        )
    errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process, by _end
    process = subprocess.Popen(
        [sys.executable, "-P", PROGRAM, name],
        cwd=folder,
        env=os.environ | SETTINGS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
    )
    return process, errors


def _end(process: "subprocess.Popen[bytes]", errors: IO[bytes]) -> None:
    _close(process)
    errors.close()


def _close(process: Any) -> None:
    """End the process: it waits for questions, and owns nothing."""
    process.kill()
    with suppress(BrokenPipeError):  # a question that it had not read
        process.stdin.close()
    process.stdout.close()
    process.wait()
