"""Files are replaced whole, and folders have one writer, also among processes that are killed."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from numpygpt.errors import InputError
from numpygpt.files import ABANDONED_AFTER, LOCK_NAME, check_writable, locked, replacing, replacing_folder, write_text
from numpygpt.formats.checkpoint import FILE_NAME, read_checkpoint, write_checkpoint
from numpygpt.sections import Section
from numpygpt.training.run import refuse_another_run
from parity_tests.command import python

PRELUDE = """
import os, sys
from pathlib import Path
import numpy as np
from numpygpt.errors import InputError
from numpygpt.files import locked, replacing
from numpygpt.formats.checkpoint import write_checkpoint
from numpygpt.sections import Section
folder = Path(sys.argv[1])
"""
HOLD = "with locked(folder):\n    print('locked', flush=True)\n    sys.stdin.read()"
WRITE = """
with replacing(folder / 'file') as path:
    path.write_text('theirs')
    print('writing', flush=True)
    sys.stdin.read()
"""


@contextmanager
def process(program, folder):
    """A Python process that runs the program. At the end it is killed if it still lives."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", PRELUDE + program, folder], env=environment, **pipes) as running:
        try:
            yield running
        finally:
            running.kill()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def kill(running):
    running.send_signal(signal.SIGKILL)
    running.wait()


# Locks


def test_a_second_process_is_refused_and_the_first_one_is_named(tmp_path):
    with process(HOLD, tmp_path) as first:
        assert first.stdout.readline() == "locked\n"
        year = time.strftime("%Y")
        who = f"process {first.pid} on {socket.gethostname()} since {year}-"
        with pytest.raises(InputError, match=f"the folder {tmp_path} is in use by {who}"), locked(tmp_path):
            pass
        first.communicate()
    assert names_in(tmp_path) == []
    with locked(tmp_path):
        assert names_in(tmp_path) == [LOCK_NAME]


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    with process(HOLD, tmp_path) as first:
        assert first.stdout.readline() == "locked\n"
        kill(first)
    assert json.loads((tmp_path / LOCK_NAME).read_text())["process"] == first.pid
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["process"] == os.getpid()
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("number", [os.getpid(), 1, 10**9], ids=["our own", "the first", "none"])
def test_a_process_id_that_was_given_to_another_process_keeps_nobody_out(tmp_path, number):
    (tmp_path / LOCK_NAME).write_text(json.dumps({"process": number, "host": socket.gethostname(), "since": "then"}))
    with locked(tmp_path):
        pass
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("contents", ["", "[", "[]", "{}", "{" * 5000])
def test_a_holder_that_does_not_say_who_it_is_still_has_the_lock(tmp_path, contents):
    with locked(tmp_path):
        (tmp_path / LOCK_NAME).write_text(contents)
        with pytest.raises(InputError, match=f"the folder {tmp_path} is in use by another process; "), locked(tmp_path):
            pass
    assert names_in(tmp_path) == []


def test_the_lock_ends_with_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        pass


CONTEND = """
while not (folder / 'stop').exists():
    try:
        with locked(folder):
            marker = os.open(folder / 'held', os.O_CREAT | os.O_EXCL)  # fails if another process is in here, too
            os.close(marker)
            (folder / 'held').unlink()
            print('held', flush=True)
    except InputError:
        pass
"""


def test_never_do_two_processes_hold_the_lock(tmp_path):
    """This holds also while one of them removes the file and another has just opened it."""
    with process(CONTEND, tmp_path) as first, process(CONTEND, tmp_path) as second:
        for running in (first, second):
            assert running.stdout.readline() == "held\n"
        time.sleep(1)
        (tmp_path / "stop").touch()
        for running in (first, second):
            _, errors = running.communicate()
            assert not errors
    assert names_in(tmp_path) == ["stop"]


def test_the_file_is_removed_before_the_lock_ends(tmp_path, monkeypatch):
    """Later it could be another process's, and a third process would lock the next file of that name."""
    unlink, removed = Path.unlink, []

    def refused_until_then(path, **options):
        with pytest.raises(InputError, match="is in use by"), locked(tmp_path):
            pass
        removed.append(path.name)
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", refused_until_then)
    with locked(tmp_path):
        pass
    assert removed == [LOCK_NAME]


def test_readers_are_not_kept_out(tmp_path):
    with locked(tmp_path):
        write_checkpoint(tmp_path, {"part": Section({"a": 1}, {"b": np.ones(2)})})
        assert read_checkpoint(tmp_path).values("part") == {"a": 1}


@pytest.mark.parametrize("make", ["nothing", "a file", "a folder in place of the lock", "a link in place of the lock"])
def test_a_folder_that_cannot_be_locked_is_named(tmp_path, make):
    folder = tmp_path / "folder"
    if make == "a file":
        folder.touch()
    elif make != "nothing":
        folder.mkdir()
        lock = folder / LOCK_NAME
        (tmp_path / "target").write_text("dear")
        lock.mkdir() if "folder" in make else lock.symlink_to(tmp_path / "target")
    with pytest.raises(InputError, match=f"the folder {folder} cannot be locked: "), locked(folder):
        pass
    if folder.is_dir():
        assert (tmp_path / "target").read_text() == "dear"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path), replacing(tmp_path / "ours") as ours:
        ours.write_text("ours")
        write_text(tmp_path / "theirs", "theirs")
    assert {name: (tmp_path / name).read_text() for name in names_in(tmp_path)} == {"ours": "ours", "theirs": "theirs"}


# Files that are replaced in one step

SAVE = """
values, array = {'by': os.getpid()}, np.full(9999, os.getpid())
while not (folder / 'stop').exists():
    write_checkpoint(folder, {'part': Section(values, {'array': array})})
    print('saved', flush=True)
"""


def test_several_savers_in_one_folder_make_only_checkpoints_that_can_be_read(tmp_path):
    with process(SAVE, tmp_path) as first, process(SAVE, tmp_path) as second:
        savers = {first.pid, second.pid}
        assert first.stdout.readline() == second.stdout.readline() == "saved\n"
        found = set()
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            checkpoint = read_checkpoint(tmp_path)
            found.add(checkpoint.values("part")["by"])
            assert set(checkpoint.arrays("part")["array"].tolist()) == {checkpoint.values("part")["by"]}
        (tmp_path / "stop").touch()
        for saver in (first, second):
            _, errors = saver.communicate()
            assert not errors
    assert found == savers
    assert names_in(tmp_path) == [FILE_NAME, "stop"]


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_of_one_that_lives(tmp_path):
    with process(WRITE, tmp_path) as dies, process(WRITE, tmp_path) as lives:
        for running in (dies, lives):
            assert running.stdout.readline() == "writing\n"
        left = names_in(tmp_path)
        assert len(left) == 2
        assert all(name.startswith(".numpygpt-") for name in left)
        kill(dies)
        assert names_in(tmp_path) == left
        write_text(tmp_path / "file", "ours")
        assert len(names_in(tmp_path)) == 2  # the file, and the folder of the process that lives
        assert (tmp_path / "file").read_text() == "ours"
        _, errors = lives.communicate()
        assert not errors
    assert names_in(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "theirs"


def left_by_version_0_1(folder, name, seconds_ago):
    """What its killed run left of a file of this name, last written to so long ago."""
    workshop = folder / f".{name}.unfinished"
    workshop.mkdir(parents=True)
    for file in (name, ".tmpQ3vR"):  # safetensors writes by way of a file of its own
        (workshop / file).write_bytes(b"half a checkpoint")
    for path in (*workshop.iterdir(), workshop):
        os.utime(path, (time.time() - seconds_ago,) * 2)
    return workshop


def test_what_version_0_1_left_is_no_checkpoint_and_is_removed_when_its_writer_cannot_live(tmp_path):
    """That version held no lock, so its writer is known to be gone only by the time."""
    abandoned = left_by_version_0_1(tmp_path, FILE_NAME, 2 * ABANDONED_AFTER)
    living = left_by_version_0_1(tmp_path / "other", FILE_NAME, ABANDONED_AFTER / 2)
    for folder in (tmp_path, tmp_path / "other"):
        refuse_another_run(folder, overwrite=False)
        with pytest.raises(InputError, match="there is no checkpoint"):
            read_checkpoint(folder)
        with locked(folder):
            write_checkpoint(folder, {"part": Section({"a": 1}, {})})
        assert read_checkpoint(folder).values("part") == {"a": 1}
    assert not abandoned.exists()
    assert len(names_in(living)) == 2


def test_a_work_folder_of_version_0_1_is_kept_as_long_as_any_part_of_it_is_written_to(tmp_path):
    workshop = left_by_version_0_1(tmp_path, "file", 2 * ABANDONED_AFTER)
    for path in (workshop, workshop / "file"):
        os.utime(path)
        write_text(tmp_path / "file", "text")
        assert len(names_in(workshop)) == 2
        os.utime(path, (time.time() - 2 * ABANDONED_AFTER,) * 2)
    write_text(tmp_path / "other", "text")
    assert len(names_in(workshop)) == 2, "it is of another file"
    write_text(tmp_path / "file", "text")
    assert names_in(tmp_path) == ["file", "other"]


def test_what_only_has_the_name_of_a_work_folder_is_kept(tmp_path):
    """A file, and a link to a folder, which version 0.1 did not make."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "dear").touch()
    (tmp_path / ".file.unfinished").touch()
    (tmp_path / ".other.unfinished").symlink_to(tmp_path / "target")
    for path in (tmp_path / ".file.unfinished", tmp_path / "target" / "dear", tmp_path / "target"):
        os.utime(path, (0, 0))
    for name in ("file", "other"):
        write_text(tmp_path / name, "text")
    assert names_in(tmp_path) == [".file.unfinished", ".other.unfinished", "file", "other", "target"]
    assert names_in(tmp_path / "target") == ["dear"]


def test_a_work_folder_that_is_taken_for_an_abandoned_one_is_replaced_by_another(tmp_path, monkeypatch):
    """Between making its folder and locking it, nothing shows that the writer of the folder lives."""
    attempts = []
    flock = fcntl.flock

    def removed_before_the_first_lock(descriptor, operation):
        if not attempts:
            attempts.append(names_in(tmp_path))
            write_text(tmp_path / "other", "theirs")  # its first lock comes after ours was refused
            raise BlockingIOError
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed_before_the_first_lock)
    with replacing(tmp_path / "file") as path:
        path.write_text("ours")
    assert {name: (tmp_path / name).read_text() for name in names_in(tmp_path)} == {"file": "ours", "other": "theirs"}


def test_the_longest_name_can_be_written_and_a_longer_one_is_refused(tmp_path):
    longest = tmp_path / ("n" * 255)
    check_writable(longest)
    write_text(longest, "text")
    assert longest.read_text() == "text"
    for refuse in (check_writable, lambda path: write_text(path, "text")):
        with pytest.raises(InputError, match=r"cannot write .*: File name too long"):
            refuse(tmp_path / ("n" * 256))
    assert names_in(tmp_path) == [longest.name]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_regular_file_cannot_be_written(tmp_path, make):
    make(tmp_path / "name")
    with pytest.raises(InputError, match=r"cannot write .*name: it is a (folder|pipe or a device); name"):
        check_writable(tmp_path / "name")


def test_an_exception_leaves_the_file_as_it_was(tmp_path):
    write_text(tmp_path / "file", "before")
    with suppress(ZeroDivisionError), replacing(tmp_path / "file") as path:
        path.write_text("after")
        raise ZeroDivisionError
    assert names_in(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "before"


# A whole folder


def write_folder(path, **contents):
    with replacing_folder(path) as unfinished:
        for name, text in contents.items():
            (unfinished / name).write_text(text)


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    write_folder(tmp_path / "made", a="old", b="old")
    write_folder(tmp_path / "made", a="new")
    assert names_in(tmp_path) == ["made"]
    assert names_in(tmp_path / "made") == ["a"]
    assert (tmp_path / "made" / "a").read_text() == "new"


def test_a_folder_that_is_not_finished_leaves_the_old_one(tmp_path):
    write_folder(tmp_path / "made", a="old")
    with suppress(KeyboardInterrupt), replacing_folder(tmp_path / "made") as unfinished:
        (unfinished / "a").write_text("new")
        raise KeyboardInterrupt
    assert names_in(tmp_path) == ["made"]
    assert (tmp_path / "made" / "a").read_text() == "old"


def test_a_folder_whose_replacement_was_killed_comes_back(tmp_path):
    """Killed after the old folder was moved away, and before the new one takes its place."""
    path = tmp_path / "made"
    path.mkdir()
    (path / "old").touch()
    done = python(
        "-c",
        f"""if True:
            import os
            from pathlib import Path
            from numpygpt.files import replacing_folder
            rename, calls = Path.rename, []
            def killed_at_the_second(path, target):
                calls.append(path)
                return os._exit(9) if len(calls) == 2 else rename(path, target)
            Path.rename = killed_at_the_second
            with replacing_folder(Path({str(path)!r})) as unfinished:
                (unfinished / "new").touch()
        """,
    )
    assert done.returncode == 9
    assert not path.exists()
    write_text(tmp_path / "other", "text")
    assert names_in(path) == ["old"]
    assert names_in(tmp_path) == ["made", "other"]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    """The old one was moved away for it."""
    write_folder(tmp_path / "made", a="old")
    rename = Path.rename

    def fail_for_the_new(path, target):
        if path.name == "unfinished":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OSError, match="Input/output error"):
        write_folder(tmp_path / "made", a="new")
    assert names_in(tmp_path) == ["made"]
    assert (tmp_path / "made" / "a").read_text() == "old"
