"""Standard output and standard error that may fail without harm.

A pipe may be closed at its other end, and a disk may be full. Neither should cost anybody a training run.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

#: The exit status of a command that has done its work, but could not print what it had to say.
NOT_TOLD = 1


def discard(stream: Any) -> None:
    """Lose what the stream has not written yet, and all that comes later. Python can then close it without an error."""
    with suppress(AttributeError, OSError, ValueError):  # there is no stream, or no file behind it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class ForgivingStream:
    """A stream to which writing never fails.

    What cannot be written is lost. A character that the stream's encoding lacks becomes `?`.

    failure   why something was lost; empty as long as nothing was lost
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failure = "" if stream is not None else "it is closed"

    def write(self, text: str) -> int:
        """Write the text, and flush it if a line is complete: people who follow a long job's log want to see it."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._attempt("write", text.encode(encoding, "replace").decode(encoding))
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Write what still waits in the stream's buffer."""
        self._attempt("flush")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, method: str, *arguments: str) -> None:
        if self.failure:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.failure = getattr(error, "strerror", None) or str(error)
            discard(self._stream)


@contextmanager
def output_may_fail() -> Iterator[ForgivingStream]:
    """Within the `with`, printing raises no error. Yields standard output; its `failure` says if anything was lost."""
    out, err = ForgivingStream(sys.stdout), ForgivingStream(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield out
        finally:
            out.flush()
            err.flush()
