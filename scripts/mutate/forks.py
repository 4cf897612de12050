"""Work in a fork of this process, which may loop, fill the memory or die without harm."""

import contextlib
import json
import os
import resource
import signal
from collections.abc import Callable
from typing import Any

#: The most bytes of addresses that a fork may have.
MEMORY = 16 * 2**30


class Ended(str):
    """Why there is no answer."""


def in_a_fork(work: Callable[[], object], seconds: float) -> Any:
    """What `work` returns, by way of JSON; Ended if it takes longer than `seconds`, raises, or ends the process."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _answer(work, writing)
    os.close(writing)
    late = []

    def stop(*_: object) -> None:
        late.append(True)
        os.killpg(child, signal.SIGKILL)

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, earlier)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # and what it started
    os.waitpid(child, 0)
    if answer:
        return json.loads(answer)
    return Ended("it takes too long" if late else "the process ended")


def _answer(work: Callable[[], object], writing: int) -> None:
    """The life of the fork, which says nothing but the answer."""
    os.setpgid(0, 0)
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        answer = json.dumps(work())
        with os.fdopen(writing, "w") as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)
