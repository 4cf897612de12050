"""Writing one thing after another, in the background where that is possible."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """Does one action after another.

    in_background   whether `write` returns while its action goes on, in a thread. The action must then use nothing that
                    changes meanwhile
    """

    def __init__(self, *, in_background: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint") if in_background else None
        self._unfinished: Future[object] | None = None

    def write(self, action: Callable[[], object]) -> None:
        """Do the action, after the one before it. Raises what either of them raises, the last one's perhaps later."""
        self.wait()
        if self._thread is None:
            action()
        else:
            self._unfinished = self._thread.submit(action)

    def wait(self) -> None:
        """Wait until all is done. Raises what the last action raises."""
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            unfinished.result()
