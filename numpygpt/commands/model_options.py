"""The options for a model's configuration, a training step and a training run, which several commands share."""

import argparse
import json
from collections.abc import Container
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin

from numpygpt.errors import InputError
from numpygpt.model.config import CHOICES, DEFAULT_CONFIG, PRESETS, GPTConfig
from numpygpt.reading import read_file
from numpygpt.training.declared import declaration_of
from numpygpt.training.options import Options

#: What a configuration starts from: a model that has a name, or a JSON file.
STARTS = ("preset", "config")


def add_model_options(
    parser: argparse.ArgumentParser, default: GPTConfig = DEFAULT_CONFIG, *, vocab_size: bool = True
) -> None:
    """Declare what `config_of` reads; without --vocab-size where something else, like a tokenizer, decides it."""
    sizes = parser.add_argument_group("the model")
    start = sizes.add_mutually_exclusive_group()
    released_or_the_books = "start from a GPT-2 as it was released, or as the book trains it"
    start.add_argument("--preset", type=preset_name, choices=PRESETS, help=released_or_the_books)
    start.add_argument("--config", type=Path, metavar="FILE", help="start from the configuration in a JSON file")
    for field in fields(GPTConfig):
        if "meaning" in field.metadata and (vocab_size or field.name != "vocab_size"):
            said = f"(default: {getattr(default, field.name)}, or the preset's or file's)"
            _add_option(sizes, field, f"{field.metadata['meaning']} {said}", choices=CHOICES.get(field.name))


def preset_name(name: str) -> str:
    """The name itself. An argument's error for one that could mean two models."""
    if name == "gpt2-small":
        raise argparse.ArgumentTypeError(
            "gpt2-small could mean two models; name gpt2, the released one (head tied, queries, keys and values with "
            "biases), or book-124M, the book's (head not tied, no such biases)"
        )
    return name


def _add_option(parser: Any, field: Any, meaning: str, **shown: Any) -> None:
    """Declare the option for a dataclass's field, of its name and type. Without it on the command line it is None."""
    kinds = [kind for kind in get_args(field.type) or (field.type,) if kind not in (type(None), ...)]
    if kinds == [bool]:
        parser.add_argument(flag(field.name), action=argparse.BooleanOptionalAction, default=None, help=meaning)
    else:
        nargs = "+" if get_origin(field.type) is tuple else None
        parser.add_argument(flag(field.name), type=kinds[0], nargs=nargs, help=meaning, **shown)


def config_of(
    parsed: argparse.Namespace, default: GPTConfig = DEFAULT_CONFIG, *, vocab_size: int | None = None
) -> GPTConfig:
    """The preset's, the file's or the default sizes, with what the command line or the caller replaces.

    Raises InputError for an unusable configuration, and for a file that holds none.
    """
    start = PRESETS[parsed.preset] if parsed.preset else read_config(parsed.config) if parsed.config else default
    replaced = {**vars(parsed), "vocab_size": vocab_size or getattr(parsed, "vocab_size", None)}
    return replace(start, **{name: replaced[name] for name in start.to_dict() if replaced.get(name) is not None})


def read_config(path: Path) -> GPTConfig:
    """The configuration in a JSON file: an object with the keys of `GPTConfig`.

    Raises InputError, with the file's name, for one that cannot be read, is no JSON, or holds no usable configuration.
    """
    text = read_file(path, "configuration")
    try:
        return GPTConfig.of(json.loads(text))
    except InputError as error:
        raise InputError(f"the configuration {path} cannot be used: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the configuration {path} is no JSON: {error}") from error


def given_model_options(parsed: argparse.Namespace) -> list[str]:
    """The names of the options of `add_model_options` that the command line holds."""
    names = (*STARTS, *(field.name for field in fields(GPTConfig)))
    return [name for name in names if getattr(parsed, name, None) is not None]


def refuse_model_options(parsed: argparse.Namespace) -> None:
    """Raise InputError if the command line holds such options beside --checkpoint, whose model has its own sizes."""
    given = given_model_options(parsed)
    if given:
        flags = ", ".join(map(flag, given))
        raise InputError(f"the model of --checkpoint has its own sizes; leave out {flags}")


def add_step_options(parser: argparse.ArgumentParser, batch_size: int | None = 2) -> None:
    """Declare the size of a training step. No default for the batch size: the command takes a run's own, or else 2."""
    default = "" if batch_size else " (default: 2, or the run's)"
    parser.add_argument("--batch-size", type=int, default=batch_size, help=f"sequences in a training step{default}")
    parser.add_argument("--tokens", type=int, help="sequence length of a training step (default: context_length)")


def add_compute_options(parser: argparse.ArgumentParser) -> None:
    """Declare how a step is computed: the options of `GPTModel` that change time and memory."""
    add_run_options(parser, ("attention", "checkpoint_activations"))


def add_run_options(
    parser: Any, names: Container[str] | None = None, *, of: Any = Options
) -> None:
    """Declare the options of a training run, or those of these names, as their class declares them."""
    for field in fields(of):
        if names is None or field.name in names:
            said = declaration_of(of, field.name)
            untold = field.type is bool or field.default is None or "(default:" in said.meaning
            default = "" if untold else f" (default: {field.default})"
            _add_option(parser, field, said.meaning + default, choices=said.choices, metavar=said.metavar)


def given_run_options(parsed: argparse.Namespace, *, of: Any = Options) -> dict[str, Any]:
    """The options of a training run that the command line holds, of those that a class declares."""
    given = {field.name: getattr(parsed, field.name) for field in fields(of)}
    return {name: value for name, value in given.items() if value is not None}


def tokens_of(batch_size: int, tokens: int | None, config: GPTConfig) -> int:
    """The sequence length of the training step. InputError for a step that the model cannot take."""
    tokens = config.context_length if tokens is None else tokens
    if batch_size < 1 or not 1 <= tokens <= config.context_length:
        raise InputError(
            f"a step on {batch_size} x {tokens} tokens; expected at least 1 x 1, and at most context_length "
            f"{config.context_length} tokens"
        )
    return tokens


def flag(name: str) -> str:
    """The option of that name: `emb_dim` is --emb-dim."""
    return "--" + name.replace("_", "-")
