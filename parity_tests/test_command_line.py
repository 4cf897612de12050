"""What all commands share: numbers that are too large, output that fails, text that cannot be shown, and the help."""

import argparse
import errno
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import numpygpt
from numpygpt.commands import main as module
from parity_tests.command import python, run

FULL = Path("/dev/full")
needs_a_full_device = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full to write to")

INFO = ("-m", "numpygpt", "info", "--emb-dim", "8", "--n-heads", "2")


def one_line(capsys):
    """The line on stderr. It must be the only line that was printed."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"numpygpt( \w+)?: error: .*\n", printed.err), printed.err
    return printed.err


# Numbers


def options_of_whole_numbers():
    """(command, option) for every option of type int."""
    actions = module._parser(module.NUMPYGPT)._actions
    (commands,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        parser.load().add_arguments(parser)
        yield from ((name, action.option_strings[0]) for action in parser._actions if action.type is int)


@pytest.mark.parametrize(("command", "option"), [*options_of_whole_numbers()])
def test_a_number_of_400_digits_is_refused(capsys, command, option):
    assert run(command, option, "9" * 400) == 2
    line = one_line(capsys)
    assert f"argument {option}: a number of 400 digits; expected at most 20; see numpygpt {command} --help" in line


def test_a_number_of_20_digits_is_passed_on(capsys):
    assert run("info", "--n-layers", "9" * 20) == 2
    assert f"n_layers is {'9' * 20}; expected at most 2147483647" in one_line(capsys)
    assert run("info", "--n-layers", 1.5) == 2
    assert "argument --n-layers: invalid int value: '1.5'" in one_line(capsys)


def test_sizes_that_no_machine_has_are_computed_and_not_allocated(capsys):
    assert run("info", "--emb-dim", 10**9, "--n-layers", 10**9, "--batch-size", 10**9, "--vocab-size", 10**9) == 0
    assert re.search(r"^peak +[\d,]{20,}\.\d MiB$", capsys.readouterr().out, re.M)


# What no command foresees


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 7.28 TiB for an array"), "memory is short: Unable to allocate 7.28 TiB"),
        (MemoryError(), "memory is short: no more can be had; take a smaller model, step or text"),
        (OSError(errno.EIO, "Input/output error", "a.txt"), "a.txt: Input/output error"),
        (OSError(errno.ENOSPC, "No space left on device"), "the output cannot be written: No space left on device"),
    ],
)
def test_an_error_of_the_machine_is_told_in_one_line(capsys, monkeypatch, error, message):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("numpygpt.commands.info.config_of", fail)
    assert run("info") == 2
    assert message in one_line(capsys)


def test_a_name_with_a_line_end_does_not_make_two_lines(capsys):
    assert run("info", "--config", "two\nlines") == 2
    assert "cannot read the configuration two lines: No such file" in one_line(capsys)


@pytest.mark.parametrize("name", ["/dev/zero", "x" * 300, ".", "pipe"])
@pytest.mark.parametrize("option", ["--config", "--checkpoint"])
def test_what_is_no_file_cannot_be_read(capsys, monkeypatch, tmp_path, option, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    assert run("info", option, name) == 2
    assert name in one_line(capsys)


# Output


@needs_a_full_device
@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [(INFO, ""), (INFO, "1"), (("-m", "numpygpt", "--version"), ""), (("-m", "numpygpt", "--version"), "1")],
)
def test_a_full_disk_is_told_and_the_status_is_2(arguments, unbuffered):
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "numpygpt: error: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_the_command_quietly_with_status_141(unbuffered):
    """Whether each line is written at once, or all of them when the buffer is full or the command ends."""
    reader, writer = os.pipe()
    os.close(reader)
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        [sys.executable, *INFO], stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=env
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("closed", "status", "told"),
    [
        (">&-", 2, "numpygpt: error: the output cannot be written: standard output is closed\n"),
        ("--n-heads 3 >&- 2>&-", 2, ""),
        pytest.param("--n-heads 3 2>/dev/full", 2, "", marks=needs_a_full_device),
    ],
)
def test_closed_streams_and_a_full_stderr_keep_the_status(closed, status, told):
    command = f"{sys.executable} {' '.join(INFO)} {closed}"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", told)


def test_what_the_terminal_cannot_encode_is_replaced(tmp_path):
    code = """if True:
        import sys
        from numpygpt.commands import gradcheck, main
        def run(parsed):
            print("\\N{GREEK SMALL LETTER ALPHA} \\udcff caf\\N{LATIN SMALL LETTER E WITH ACUTE}")
            raise main.InputError("\\N{SNOWMAN}")
        gradcheck.run = run
        sys.exit(main.main(["gradcheck"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (2, b"? ? caf\xe9\n", b"numpygpt: error: ?\n")


# The help


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_the_packages(capsys, option):
    assert run(option) == 0
    assert capsys.readouterr().out == f"numpygpt {numpygpt.__version__}\n"


def test_the_help_lists_every_command_in_a_line_and_loads_nothing_heavy():
    code = """if True:
        import sys
        from numpygpt.commands.main import main
        main(["--help"])
        heavy = {"torch", "matplotlib", "tiktoken", "safetensors", "tqdm", "rich", "jinja2", "threadpoolctl"}
        print(sorted(heavy.intersection(sys.modules)), file=sys.stderr)
    """
    done = python("-c", code)
    assert done.stderr == "[]\n"
    listed = dict(re.findall(r"^    (\w+) +(.*)$", done.stdout, re.M))
    assert listed == {**module.COMMANDS, "parity": "check every tensor of a training step against PyTorch"}


def test_without_pytorch_the_help_says_how_to_get_it(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchgpt"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run("--help") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "parity torchgpt needs PyTorch, which is not installed: pip install 'numpygpt[torch]'" in printed


def test_a_command_that_another_package_brings_runs_like_our_own(capsys, monkeypatch, tmp_path):
    (tmp_path / "brought.py").write_text(
        'HELP = "say hello"\n'
        "def add_arguments(parser):\n"
        '    parser.add_argument("--name")\n'
        "def run(parsed):\n"
        '    """Say hello to somebody."""\n'
        '    print(f"hello {parsed.name}")\n'
        "    return 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("greet", "brought", module.BROUGHT)
    monkeypatch.setattr(module, "entry_points", lambda group: [entry])
    assert run("greet", "--name", "you") == 0
    assert capsys.readouterr().out == "hello you\n"
    assert run("--help") == 0
    assert "    greet          say hello\n" in re.sub(r"greet +", "greet          ", capsys.readouterr().out)
    assert run("greet", "--help") == 0
    assert "Say hello to somebody." in capsys.readouterr().out


# torchgpt's names


def test_every_name_of_torchgpt_is_found_and_others_are_not():
    code = """if True:
        import sys
        import torchgpt
        assert "torch" not in sys.modules
        for name in torchgpt.__all__:
            assert getattr(torchgpt, name).__name__ if name != "GPT_CONFIG_124M" else torchgpt.GPT_CONFIG_124M
        from torchgpt import *
        assert GPTModel.__module__ == "torchgpt.model"
        try:
            torchgpt.gpt5
        except AttributeError as error:
            print(error)
    """
    done = python("-c", code)
    assert (done.stdout, done.stderr) == ("module 'torchgpt' has no attribute 'gpt5'\n", "")
