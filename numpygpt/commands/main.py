"""The command `numpygpt`; what each of its commands does is in `numpygpt.commands`.

`Program` is what it has in common with the command of another package, such as torchgpt.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpygpt
from numpygpt.errors import BAD_INPUT, CLOSED_PIPE, INTERRUPTED, InputError
from numpygpt.output import discard
from numpygpt.process import keep_freed_memory

#: The commands. Each is a module of this package.
COMMANDS = {
    "train": "train a model on text",
    "finetune": "a trained model learns more, whole or with adapters",
    "generate": "continue a prompt with a trained model",
    "chat": "a conversation with a tuned model",
    "tokenize": "texts of any size as a file of token ids",
    "evaluate": "perplexity of a text, last words, right endings",
    "info": "parameters and memory of a model",
    "merge": "one model of a base and its adapter",
    "quantize": "a model with packed matrices, or the schemes compared",
    "convert": "a model from the files of one program to those of another",
    "attention": "draw what each attention head reads",
    "embeddings": "draw the word vectors in two dimensions",
    "gradcheck": "check every gradient, or those of your own operation",
    "curvature": "the largest eigenvalues of the Hessian of a model's loss",
    "trace": "every tensor of a few training steps in one file",
    "diff": "where another program first leaves a trace, and why",
    "conform": "whether another program computes the same",
}

#: The group of entry points by which other packages bring commands, as modules that `numpygpt.commands` describes.
BROUGHT = "numpygpt.commands"

#: The group of entry points by which other packages bring programs of their own: functions that return an exit status.
PROGRAMS = "numpygpt.programs"

#: How many digits a number that an option takes may have. A larger number could only overflow later.
MOST_DIGITS = 20


class Program(NamedTuple):
    """A command with commands of its own.

    name          its name, for messages
    description   what it is for, in its help
    package       the package that has a module for each of its commands
    commands      {name of a command: its line of help}
    brought       the group of entry points that bring more commands; None: there are none
    """

    name: str
    description: str
    package: str
    commands: Mapping[str, str]
    brought: str | None = None


NUMPYGPT = Program(
    name="numpygpt",
    description="GPT in pure NumPy: train it, let it write, look inside, check its gradients.",
    package="numpygpt.commands",
    commands=COMMANDS,
    brought=BROUGHT,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `numpygpt` and return its exit status: see `run_program`."""
    return run_program(NUMPYGPT, arguments)


def run_program(program: Program, arguments: Sequence[str] | None = None, *, says_why: bool = True) -> int:
    """Run a program and return its exit status.

    says_why   whether it says why something could not be done; of several processes, one does

    0     all was done
    1     a check failed; or a training went well, but what it printed was lost
    2     it could not be done; one line on stderr says why: bad input, too little memory, output that cannot be written
    130   Ctrl-C
    141   the reader of the output has closed it, as in `numpygpt info | head -1`; nothing is printed about it
    """
    keep_freed_memory()
    closed = sys.stdout is None
    _make_printing_safe()

    def refused(reason: str) -> int:
        return _refused(program, reason) if says_why else BAD_INPUT

    try:
        status = _run(program, arguments, refused, says_why=says_why)
        if closed and status == 0:
            return refused("the output cannot be written: standard output is closed")
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        discard(sys.stdout)
        return CLOSED_PIPE
    except OSError as error:
        discard(sys.stdout)
        return refused(f"{error.filename or 'the output cannot be written'}: {error.strerror}")


def torchgpt() -> int:
    """Run the command `torchgpt`, which another package brings, or say what that package lacks."""
    (brought,) = entry_points(group=PROGRAMS, name="torchgpt")
    try:
        program: Callable[[], int] = brought.load()
    except ImportError as error:
        print(f"torchgpt: error: {error}", file=sys.stderr)
        return BAD_INPUT
    return program()


def _make_printing_safe() -> None:
    """Let each stream show "?" for what its terminal cannot show, and replace a closed stream by the null device."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # until the process ends
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _run(
    program: Program, arguments: Sequence[str] | None, refused: Callable[[str], int], *, says_why: bool
) -> int:
    try:
        with nullcontext() if says_why else redirect_stderr(StringIO()):
            parsed = _parser(program).parse_args(arguments)
        with warnings.catch_warnings():
            # after an overflow the loss is not finite, for which there is an error line
            warnings.simplefilter("ignore", RuntimeWarning)
            return parsed.run(parsed)
    except InputError as error:
        return refused(str(error))
    except ImportError as error:
        return refused(f"{error}{_install_line(error)}")
    except MemoryError as error:
        return refused(f"memory is short: {str(error) or 'no more can be had'}; take a smaller model, step or text")
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:  # argparse has printed its help or an error
        return stop.code if isinstance(stop.code, int) else 0


def _refused(program: Program, reason: str) -> int:
    """Say why in one line."""
    try:
        print(f"{program.name}: error: {' '.join(reason.splitlines())}", file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)
    return BAD_INPUT


def _install_line(error: ImportError) -> str:
    """How to install the package that is missing; empty if the error does not name it, because its message says how."""
    return f"; install it with: pip install {error.name.partition('.')[0]}" if error.name else ""


def _whole_number(text: str) -> int:
    """The number that an option of type int has."""
    if len(text) > MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"a number of {len(text)} digits; expected at most {MOST_DIGITS}")
    return int(text)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to the help of an option that has one, unless the help names it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line. It loads the module of its command when it is used."""

    load: Callable[[], Any] | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", int, _whole_number)

    def parse_known_args(self, *arguments: Any, **options: Any) -> Any:
        """Declare the command's own options, and then parse as argparse does."""
        if self.load is not None:
            command = self.load()
            command.add_arguments(self)
            self.description = command.run.__doc__
            self.set_defaults(run=command.run)
        return super().parse_known_args(*arguments, **options)

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse's own method would hide a failure

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _parser(program: Program) -> argparse.ArgumentParser:
    parser = _Parser(prog=program.name, description=program.description)
    parser.add_argument("-V", "--version", action="version", version=f"%(prog)s {numpygpt.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, help_line: str, load: Callable[[], Any]) -> None:
        commands.add_parser(name, help=help_line, formatter_class=_HelpFormatter).load = load

    for name, help_line in program.commands.items():
        add(name, help_line, partial(import_module, f"{program.package}.{name}"))
    for brought in entry_points(group=program.brought) if program.brought else ():
        add(brought.name, _help_line(brought), brought.load)
    return parser


def _help_line(brought: EntryPoint) -> str:
    """The HELP of a command that another package brings, or why its module cannot be imported."""
    try:
        return brought.load().HELP
    except ImportError as error:
        return str(error)
