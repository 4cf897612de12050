"""What must not cost a training run: output that fails, bad learning rates, a second process, absurd sizes."""

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from numpygpt.files import locked
from numpygpt.formats.checkpoint import FILE_NAME, read_checkpoint
from numpygpt.output import ForgivingStream, output_may_fail
from numpygpt.training.journal import FILE_NAME as LOG_NAME
from numpygpt.training.numpy_backend import NumpyBackend
from numpygpt.training.run import TrainingRun
from parity_tests.command import TRAINING, but_the_log, files, run, write_text

FULL = Path("/dev/full")
needs_a_full_device = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full to write to")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with text.txt in it."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    return tmp_path


def saved_step(directory="run"):
    return read_checkpoint(directory).values("run")["step"]


# Output that fails


def in_bash(command, **environment):
    """The exit status of the first command of a pipeline, and what reached standard output and standard error."""
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def training(*arguments):
    words = (sys.executable, "-m", "numpygpt", "train", "--text", "text.txt", *TRAINING, "--out", "run", *arguments)
    return shlex.join(map(str, words))


def test_a_reader_that_leaves_after_one_line_costs_nothing(folder):
    status, out, err = in_bash(f"{training()} | head -1")
    assert (status, out.count("\n")) == (1, 1)
    assert err.splitlines()[-1] == "numpygpt train: standard output was lost (Broken pipe), the training was not"
    assert "Traceback" not in err
    assert saved_step() == 3


@needs_a_full_device
def test_a_full_disk_under_both_outputs_costs_nothing(folder):
    assert in_bash(f"{training()} > /dev/full 2> /dev/full") == (1, "", "")
    assert saved_step() == 3


@pytest.fixture
def no_picture(monkeypatch):
    """Draw no picture, which would take longer than the training."""
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")


@needs_a_full_device
@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(("stream", "expected"), [("stdout", 1), ("stderr", 0)])
def test_what_one_output_cannot_tell_the_other_does(folder, monkeypatch, capsys, stream, expected):
    """Results go to standard output, and the bar to standard error. It is enough that the results are told."""
    with FULL.open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, stream, full)
        assert run("train", "--text", "text.txt", *TRAINING, "--out", "run") == expected
    printed = capsys.readouterr()
    if stream == "stdout":
        assert printed.err.endswith("numpygpt train: standard output was lost (No space left on device), the training "
                                    "was not\n")
    else:
        assert printed.out.endswith("let it write: numpygpt generate --checkpoint run --prompt 'The '\n")
    assert saved_step() == 3


@needs_a_full_device
def test_bad_input_is_bad_input_whatever_becomes_of_the_output(folder, monkeypatch):
    with FULL.open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert run("train", "--text", "text.txt", *TRAINING, "--n-heads", 3, "--out", "run") == 2
    assert list(files(folder)) == ["text.txt"]


def test_a_terminal_without_a_character_and_a_matplotlib_that_does_not_start_cost_nothing(folder):
    environment = {"PYTHONIOENCODING": "ascii", "MPLBACKEND": "nonsense"}
    status, out, err = in_bash(training("--sample-every", 2, "--sample-prompt", "é"), **environment)
    assert status == 0, err
    assert "\nstep 2: ?" in out
    assert re.search(r"^no loss curves were drawn: matplotlib refuses the environment variable MPLBACKEND", out, re.M)
    assert saved_step() == 3


def test_a_terminal_without_a_character_does_not_end_generating(folder, monkeypatch):
    assert run("train", "--text", "text.txt", *TRAINING, "--steps", 1, "--out", "run") == 0
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    assert run("generate", "--checkpoint", "run", "--prompt", "é €", "--max-new-tokens", 0) == 0
    assert out.buffer.getvalue() == "é ?\n".encode("latin-1")


class Failing(io.StringIO):
    """A stream that accepts some writes, and then fails."""

    def __init__(self, error, after=1):
        super().__init__()
        self.error, self.left = error, after

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(BrokenPipeError(32, "Broken pipe"), "Broken pipe"), (ValueError("it is closed"), "it is closed")],
)
def test_what_a_stream_refuses_is_lost_and_nothing_else_is(error, reason):
    failing = Failing(error)
    stream = ForgivingStream(failing)
    assert stream.write("one\n") == 4
    assert stream.failure == ""
    assert stream.write("two\n") == 4
    assert stream.failure.startswith(reason)
    stream.write("three\n")
    stream.flush()
    assert failing.getvalue() == "one\n"
    assert failing.left == -1, "it is not asked again"


def test_a_line_is_written_as_soon_as_it_is_whole():
    """This holds in a pipe or a file too, so that people who follow the log of a long run see how far it is."""
    written = io.BytesIO()
    stream = ForgivingStream(io.TextIOWrapper(written, encoding="utf-8"))
    stream.write("half ")
    assert written.getvalue() == b""
    stream.write("a line\n")
    assert written.getvalue() == b"half a line\n"


def test_a_character_that_the_stream_lacks_costs_nothing_else():
    written = io.BytesIO()
    stream = ForgivingStream(io.TextIOWrapper(written, encoding="latin-1"))
    stream.write("é € \udcff\n")
    assert (written.getvalue(), stream.failure) == ("é ? ?\n".encode("latin-1"), "")


def test_no_stream_at_all_is_a_stream_that_fails(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with output_may_fail() as output:
        print("lost")
    assert output.failure
    assert sys.stdout is None


def test_an_error_passes_through_and_what_was_printed_before_it_is_not_lost(capsys):
    with pytest.raises(ZeroDivisionError), output_may_fail():
        print("before", 1 // int(print("first", end="") is not None))
    assert capsys.readouterr().out == "first"


# Learning rates that ruin a run


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(
    "arguments",
    [("--steps", 1), ("--steps", 9, "--save-every", 1), ("--steps", 9, "--save-every", 0)],
    ids=["in the last step", "before the first checkpoint", "without checkpoints"],
)
def test_a_run_at_an_absurd_rate_ends_with_one_line_and_saves_nothing(folder, capsys, arguments):
    rate = ("--lr", 1e38, "--warmup-steps", 0)
    assert run("train", "--text", "text.txt", *TRAINING, *rate, *arguments, "--out", "run") == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("numpygpt: error: ")
    assert re.search(r"nothing was saved: start again with a lower learning rate, such as --lr 1e\+37$", printed.err)
    assert "let it write" not in printed.out
    assert list(files(folder / "run")) == [LOG_NAME]


@pytest.mark.usefixtures("no_picture")
def test_the_way_back_leads_on_from_the_last_good_checkpoint(folder, capsys):
    common = ("--text", "text.txt", *TRAINING, "--schedule", "constant", "--out", "run", "--save-every", 2)
    assert run("train", *common, "--steps", 2) == 0
    before = files(folder)
    capsys.readouterr()
    assert run("train", "--resume", "run", "--steps", 5, "--lr", 1e38) == 2
    assert but_the_log(files(folder)) == but_the_log(before)
    (command,) = re.findall(r"such as numpygpt (train --resume run --lr 1e\+37)\n", capsys.readouterr().err)
    assert run(*command.split()[:-1], "0.001", "--steps", 5) == 0
    assert saved_step() == 5
    assert read_checkpoint("run").values("run")["options"]["lr"] == 0.001


# A second process


@pytest.mark.usefixtures("no_picture")
def test_a_second_run_in_the_folder_is_refused(folder, capsys):
    common = ("train", "--text", "text.txt", *TRAINING, "--steps", 1)
    assert run(*common, "--out", "run") == 0
    with locked(folder / "run"):
        before = files(folder)
        capsys.readouterr()
        for arguments in (("train", "--resume", "run", "--steps", 2), (*common, "--out", "run", "--overwrite")):
            assert run(*arguments) == 2
            assert re.search(rf"the folder .*run is in use by process {os.getpid()} ", capsys.readouterr().err)
        assert files(folder) == before
    assert run("train", "--resume", "run", "--steps", 2) == 0
    assert sorted(files(folder / "run")) == ["best/checkpoint.safetensors", FILE_NAME, LOG_NAME], "and no lock"


@pytest.mark.usefixtures("no_picture")
def test_a_run_that_came_and_went_in_the_meantime_is_not_overwritten(folder, monkeypatch, capsys):
    """It began after we had looked for another run in the folder, and ended before we had locked the folder."""
    start = NumpyBackend.start

    def start_slowly(task):
        monkeypatch.setattr(NumpyBackend, "start", start)
        assert run("train", "--text", "text.txt", *TRAINING, "--steps", 1, "--out", "run") == 0
        return start(task)

    monkeypatch.setattr(NumpyBackend, "start", start_slowly)
    assert run("train", "--text", "text.txt", *TRAINING, "--out", "run") == 2
    assert "run already holds a checkpoint" in capsys.readouterr().err
    assert saved_step() == 1


# Absurd sizes and names


def refused(capsys, folder, *arguments):
    before = files(folder)
    capsys.readouterr()
    assert run("train", *arguments) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1), printed
    assert files(folder) == before
    return printed.err


TOO_LARGE = r"needs at least [\d,]+\.\d GiB of memory, and this machine has [\d,]+\.\d GiB"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", 10**400), "--steps: a number of 401 digits; expected at most"),
        (("--steps", 10**15), r"steps is 1000000000000000; expected at most 1,000,000,000,000$"),
        (("--batch-size", 10**11), f"on 100000000000 x 6 tokens {TOO_LARGE}"),
        (("--accumulate", 10**12), f"on 1000000000000 times 3 x 6 tokens {TOO_LARGE}"),
        (("--emb-dim", 1_000_000), TOO_LARGE),
        (("--n-layers", 1_000_000_000), TOO_LARGE),
        (("--context-length", 2**31 - 1), TOO_LARGE),
        (("--out", "x" * 300), r"cannot write to the folder x{300}: File name too long; choose another$"),
        (("--text", "."), r"cannot read the text file \.: Is a directory"),
        (("--text", "x" * 300), r"cannot read the text file x{300}: File name too long"),
        (("--config", "."), r"cannot read the configuration \.: Is a directory"),
    ],
    ids=lambda value: " ".join(map(str, value))[:30] if isinstance(value, tuple) else "",
)
def test_absurd_sizes_and_names(capsys, folder, options, message):
    line = refused(capsys, folder, "--text", "text.txt", *TRAINING, "--out", "run", *options)
    assert re.search(message, line.rstrip()), line


def test_names_of_300_characters_to_go_on_from(capsys, folder):
    assert "File name too long" in refused(capsys, folder, "--resume", "x" * 300)


@needs_a_full_device
def test_a_device_or_a_pipe_as_a_text_or_a_configuration(capsys, folder):
    os.mkfifo(folder / "pipe")
    for path in (FULL, "pipe"):
        for option in ("--text", "--config"):
            line = refused(capsys, folder, "--text", "text.txt", *TRAINING, "--out", "run", option, path)
            assert f"{path}: it is a pipe or a device; give a regular file" in line


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "{", "nul", '"\ud800"'], ids=lambda text: text[:3]
)
def test_a_configuration_that_no_one_could_read(unchecked, capsys, folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    line = refused(capsys, folder, "--text", "text.txt", *TRAINING, "--out", "run", "--config", "config.json")
    assert re.search(r"the configuration config\.json (is no JSON|cannot be used): ", line)
    assert len(line) < 250


def test_memory_that_runs_out(capsys, folder, monkeypatch):
    def start(task):
        raise MemoryError("Unable to allocate 8.00 GiB for an array")

    monkeypatch.setattr(NumpyBackend, "start", start)
    line = refused(capsys, folder, "--text", "text.txt", *TRAINING, "--out", "run")
    assert "Unable to allocate 8.00 GiB for an array" in line
