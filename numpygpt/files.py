"""Files that are replaced in one step, and folders that one process at a time may write to.

Both hold a lock of the operating system's (flock), which ends with the process, however it ends: nobody has to find out
whether the process that left a lock behind still lives. Readers ask for no lock and are never kept waiting.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from numpygpt.errors import InputError

LOCK_NAME = ".lock"
WORKSHOP_PREFIX, WORKSHOP_SUFFIX = ".numpygpt-", ".unfinished"
#: What flock answers on a file system that has no locks; there, nobody is kept out.
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}

# Files that are replaced in one step


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file to, which then replaces `path` in one step, or vanishes if anything is raised.

    Each caller writes in a folder of its own beside `path`, so that several may write at a time; the last to finish
    counts. The next caller removes what a killed process left behind. It is a folder because safetensors itself writes
    by way of a temporary file beside its target.
    """
    _remove_abandoned_workshops(path.parent)
    with _workshop(path.parent) as workshop:
        unfinished = workshop / path.name
        yield unfinished
        _flush_to_disk(unfinished)
        unfinished.replace(path)
        _flush_to_disk(path.parent)


@contextmanager
def _workshop(parent: Path) -> Iterator[Path]:
    """A new folder, locked as long as it is used."""
    lock = None
    while lock is None:
        folder = Path(tempfile.mkdtemp(WORKSHOP_SUFFIX, WORKSHOP_PREFIX, parent))
        with suppress(BlockingIOError, FileNotFoundError):  # not yet locked, it was taken for one that was left behind
            lock = _lock(folder / LOCK_NAME)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_abandoned_workshops(parent: Path) -> None:
    for workshop in parent.glob(f"{WORKSHOP_PREFIX}*{WORKSHOP_SUFFIX}"):
        with suppress(OSError), (workshop / LOCK_NAME).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an OSError while its writer lives
            shutil.rmtree(workshop, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Folders that one process at a time may write to


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Within it, the folder is ours: whoever else asks for the same is refused, in this process or another.

    Raises InputError, which names the process that has the folder, or says why there can be no lock. A lock whose
    process has ended, even by kill -9 or with its machine, is taken over. The process says who it is in the file
    `.lock`, which is there as long as the lock.
    """
    path = directory / LOCK_NAME
    try:
        lock = _lock(path)
        _say_who_holds(lock)
    except BlockingIOError as error:
        raise InputError(
            f"the folder {directory} is in use by {_holder(path)}; wait until it ends, stop it, or choose another"
        ) from error
    except OSError as error:
        raise InputError(f"the folder {directory} cannot be locked: {error.strerror}; choose another") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # still locked, so it is no other process's
        os.close(lock)


def _lock(path: Path) -> int:
    """A descriptor of the file, which is made if it is not there, with its lock. BlockingIOError if another has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _flock(descriptor)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed the file and let go of it after we had opened it


def _flock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _say_who_holds(lock: int) -> None:
    since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
    os.ftruncate(lock, 0)
    os.write(lock, json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}).encode())


def _holder(path: Path) -> str:
    """Who holds the lock, as it says itself."""
    try:
        with path.open(encoding="utf-8") as file:
            found = json.loads(file.read(1000))
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


# Files for a report


def check_writable(path: Path) -> None:
    """Find out before long work whether `write_text` or `replacing` can write the file.

    Raises InputError if its name is too long, if there is no folder for it or one that is read-only, and if something
    else than a regular file has its name.
    """
    try:
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it, or name another")
        with suppress(FileNotFoundError):
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise InputError(f"cannot write {path}: it is a folder; name a file in it")
            if not stat.S_ISREG(mode):
                raise InputError(f"cannot write {path}: it is a pipe or a device; name a regular file")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another") from error
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: the folder {path.parent} is read-only; name another")


def write_text(path: Path, text: str) -> None:
    """Write the file whole, in UTF-8, in place of an older one. InputError if that fails."""
    try:
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another") from error
