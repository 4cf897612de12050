"""The command `numpygpt`; what each of its commands does is in `numpygpt.commands`."""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NoReturn

import numpygpt
from numpygpt.errors import BAD_INPUT, INTERRUPTED, InputError
from numpygpt.process import keep_freed_memory

#: The commands, a module of this package each.
COMMANDS = {
    "train": "train a model on text",
    "generate": "continue a prompt with a trained model",
    "info": "parameters and memory of a model",
    "attention": "draw what each attention head reads",
    "embeddings": "draw the word vectors in two dimensions",
    "gradcheck": "check every gradient against complex step",
}

#: Commands that other packages bring: entry points of this group, each a module with `add_arguments` and `run`.
BROUGHT = "numpygpt.commands"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 where a check failed, 2 for bad input (one line on stderr)."""
    keep_freed_memory()
    try:
        parsed = _parser().parse_args(arguments)
        with warnings.catch_warnings():
            # an overflow ends in a loss that is not finite, and that has a line of its own
            warnings.simplefilter("ignore", RuntimeWarning)
            return parsed.run(parsed)
    except InputError as error:
        print(f"numpygpt: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except ImportError as error:
        print(f"numpygpt: error: {error}{_install_line(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has closed it; there is nobody left to tell
        return 0


def _install_line(error: ImportError) -> str:
    """How to install the package that is missing; one of ours that raises the error itself has said it already."""
    return f"; install it with: pip install {error.name.partition('.')[0]}" if error.name else ""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help, where it has one and the help does not name it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line, and which loads the command behind it when it is used."""

    load: Callable[[], Any] | None = None

    def parse_known_args(self, *arguments: Any, **options: Any) -> Any:
        """As argparse does it, with the command's own options declared first."""
        if self.load is not None:
            command = self.load()
            command.add_arguments(self)
            self.description = command.run.__doc__
            self.set_defaults(run=command.run)
        return super().parse_known_args(*arguments, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="numpygpt", description="GPT in pure NumPy: train it, let it write, look inside, check its gradients."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {numpygpt.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, help_line: str, load: Callable[[], Any]) -> None:
        commands.add_parser(name, help=help_line, formatter_class=_HelpFormatter).load = load

    for name, help_line in COMMANDS.items():
        add(name, help_line, partial(import_module, f"numpygpt.commands.{name}"))
    for brought in entry_points(group=BROUGHT):
        add(brought.name, f"brought by {brought.module.partition('.')[0]}", brought.load)
    return parser
