"""Files that are replaced in one step, and folders that one process at a time may write to.

Both use a lock of the operating system (flock). Such a lock ends with its process, however the process ends, so nobody
has to find out whether the process that left a lock behind still lives. Readers take no lock and never wait for one.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from numpygpt.errors import InputError

LOCK_NAME = ".lock"
WORKSHOP_PREFIX, WORKSHOP_SUFFIX = ".numpygpt-", ".unfinished"
#: Where a work folder holds the folder that is just being replaced.
REPLACED = "replaced"
#: Version 0.1 wrote a file NAME in the folder .NAME.unfinished, without a lock, and within minutes. If nothing has been
#: written there for so many seconds, the folder was left behind. A process that was suspended as long as that, and goes
#: on, cannot finish its file then: it says so, and the file that it would have replaced stays.
ABANDONED_AFTER = 3600
#: The errors by which flock says that the file system has no locks. There, nobody is kept out.
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}

# Files that are replaced in one step


@contextmanager
def replacing(path: Path, check: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """Yield a path to write a file to. Then the file replaces `path` in one step, or is removed if anything is raised.

    check   is called with the path of the new file before it replaces `path`. It reads what is on the disk, as far as
            the system allows, and not what the system remembers of the file. If it raises, `path` stays as it was.

    Each caller writes in a folder of its own beside `path`, so that several may write at a time; the file of the one
    that finishes last stays. The next caller removes the folder that a killed process left behind. A folder is needed
    because safetensors itself writes a temporary file beside its target.
    """
    remove_abandoned(path.parent)
    _remove_abandoned_workshop_of_version_0_1(path)
    with _workshop(path.parent) as workshop:
        unfinished = workshop / path.name
        yield unfinished
        _flush_to_disk(unfinished)
        if check is not None:
            _forget(unfinished)
            check(unfinished)
        unfinished.replace(path)
        _flush_to_disk(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to write files in. Then it takes the place of `path`, or is removed if anything is raised.

    A folder at `path`, which is then gone with all that is in it, is moved away just before. The files reach the disk
    before either happens, so that `path` never holds a part of them. If the process is killed between the two, there is
    no folder at `path` until the next caller puts the old one back.
    """
    remove_abandoned(path.parent)
    with _workshop(path.parent) as workshop:
        unfinished, replaced = workshop / "unfinished", workshop / REPLACED / path.name
        unfinished.mkdir()
        replaced.parent.mkdir()
        yield unfinished
        for written in (*unfinished.iterdir(), unfinished):
            _flush_to_disk(written)
        try:
            with suppress(FileNotFoundError):
                path.rename(replaced)
            unfinished.rename(path)
        except BaseException:
            with suppress(OSError):  # nothing was moved away, or both renames were done
                replaced.rename(path)
            raise
        _flush_to_disk(path.parent)


@contextmanager
def _workshop(parent: Path) -> Iterator[Path]:
    """A new folder, which is locked as long as it is used."""
    lock = None
    while lock is None:
        folder = Path(tempfile.mkdtemp(WORKSHOP_SUFFIX, WORKSHOP_PREFIX, parent))
        with suppress(BlockingIOError, FileNotFoundError):  # another removed it before it was locked
            lock = _lock(folder / LOCK_NAME)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders that killed processes left in `parent` while they replaced something in it.

    A folder that was moved away, and whose place nothing has taken, is put back.
    """
    for workshop in parent.glob(f"{WORKSHOP_PREFIX}*{WORKSHOP_SUFFIX}"):
        with suppress(OSError), (workshop / LOCK_NAME).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an OSError while its writer lives
            for replaced in (workshop / REPLACED).glob("*"):
                if not (parent / replaced.name).exists():
                    replaced.rename(parent / replaced.name)
            shutil.rmtree(workshop, ignore_errors=True)


def _remove_abandoned_workshop_of_version_0_1(path: Path) -> None:
    workshop = path.with_name(f".{path.name}{WORKSHOP_SUFFIX}")
    with suppress(OSError):  # usually there is none
        written = max(entry.stat().st_mtime for entry in (workshop, *workshop.iterdir()))
        if time.time() - written > ABANDONED_AFTER:
            shutil.rmtree(workshop, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forget(path: Path) -> None:
    """Let the system forget the contents of a file that is on the disk, so that they are read from there again.

    This is advice, which Linux follows. macOS has no such call.
    """
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


# Files with a second name


def name_also(path: Path, other: Path) -> None:
    """Give the file at `path` the second name `other`, in one step and in place of what had that name.

    The file is the same under both names until one of the two is replaced. A file system without second names gets a
    copy. OSError if neither can be made.
    """
    with replacing(other) as unfinished:
        try:
            unfinished.hardlink_to(path.resolve())
        except OSError:
            shutil.copy(path, unfinished)


# Folders that one process at a time may write to


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Within the `with`, the folder is ours: anybody else who asks for it is refused, in this process or another.

    Raises InputError, which names the process that has the folder, or says why it cannot be locked. A lock whose
    process has ended, even by kill -9 or with its machine, is taken over. The process that has the folder names itself
    in the file `.lock`, which is there as long as the lock.
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
        path.unlink(missing_ok=True)  # it is still locked, so it is not another process's
        os.close(lock)


def _lock(path: Path) -> int:
    """A descriptor of the locked file, which is made if it is not there. BlockingIOError if another has locked it."""
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
        os.close(descriptor)  # after we opened the file, its holder removed and unlocked it


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
    """Who holds the lock, by its own words in the file."""
    try:
        with path.open(encoding="utf-8") as file:
            found = json.loads(file.read(1000))
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


# Files for a report


def check_writable(path: Path) -> None:
    """Find out, before long work, whether `write_text` or `replacing` can write the file.

    Raises InputError if its name is too long, if its folder does not exist or is read-only, and if something other than
    a regular file has its name.
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
