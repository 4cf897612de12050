"""The command `numpygpt`; what each of its commands does is in `numpygpt.commands`."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from numpygpt.allocator import keep_freed_memory
from numpygpt.commands import attention, embeddings, generate, gradcheck, info, parity, train
from numpygpt.errors import BAD_INPUT, INTERRUPTED, InputError

COMMANDS = (
    ("train", train, "train a model on text"),
    ("generate", generate, "continue a prompt with a trained model"),
    ("info", info, "parameters and memory of a model"),
    ("attention", attention, "draw what each attention head reads"),
    ("embeddings", embeddings, "draw the word vectors in two dimensions"),
    ("gradcheck", gradcheck, "check every gradient against complex step"),
    ("parity", parity, "check every tensor of a training step against PyTorch"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 where a check failed, 2 for bad input (one line on stderr)."""
    parsed = _parser().parse_args(arguments)
    keep_freed_memory()
    try:
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
    """An argparse parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="numpygpt", description="GPT in pure NumPy: train it, let it write, look inside, check its gradients."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for name, command, help_line in COMMANDS:
        options = commands.add_parser(
            name, help=help_line, description=command.run.__doc__, formatter_class=_HelpFormatter
        )
        command.add_arguments(options)
        options.set_defaults(run=command.run)
    return parser
