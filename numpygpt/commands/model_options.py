"""The options for a model's configuration and for a training step, which several commands share."""

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path

from numpygpt.errors import InputError
from numpygpt.model.config import ATTENTIONS, DEFAULT_CONFIG, GPT2_SIZES, POSITIONS, GPTConfig

#: What a configuration starts from: a released GPT-2, or a JSON file.
STARTS = ("preset", "config")


def add_model_options(
    parser: argparse.ArgumentParser, default: GPTConfig = DEFAULT_CONFIG, *, vocab_size: bool = True
) -> None:
    """Declare what `config_of` reads; without --vocab-size where something else, like a tokenizer, decides it."""
    sizes = parser.add_argument_group("the model")
    start = sizes.add_mutually_exclusive_group()
    start.add_argument("--preset", choices=GPT2_SIZES, help="start from the sizes of a GPT-2")
    start.add_argument("--config", type=Path, metavar="FILE", help="start from the configuration in a JSON file")
    names = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
    for name in names if vocab_size else names[1:]:
        sizes.add_argument(flag(name), type=int, help=_default(default, name))
    sizes.add_argument("--drop-rate", type=float, help=_default(default, "drop_rate"))
    for name in ("qkv_bias", "tie_weights"):
        sizes.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=None)
    sizes.add_argument("--position", choices=POSITIONS, help=_default(default, "position"))


def _default(default: GPTConfig, name: str) -> str:
    return f"(default: {getattr(default, name)}, or the preset's or file's)"


def config_of(
    parsed: argparse.Namespace, default: GPTConfig = DEFAULT_CONFIG, *, vocab_size: int | None = None
) -> GPTConfig:
    """The preset's, the file's or the default sizes, with what the command line or the caller replaces.

    Raises InputError for an unusable configuration, and for a file that holds none.
    """
    start = GPT2_SIZES[parsed.preset] if parsed.preset else read_config(parsed.config) if parsed.config else default
    replaced = {**vars(parsed), "vocab_size": vocab_size or getattr(parsed, "vocab_size", None)}
    return replace(start, **{name: replaced[name] for name in start.to_dict() if replaced[name] is not None})


def read_config(path: Path) -> GPTConfig:
    """The configuration in a JSON file: an object with the keys of `GPTConfig`.

    Raises InputError, with the file's name, for one that cannot be read, is no JSON, or holds no usable configuration.
    """
    try:
        return GPTConfig.of(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"the configuration {path} cannot be used: {error}") from error
    except ValueError as error:
        raise InputError(f"the configuration {path} is no JSON: {error}") from error


def given_model_options(parsed: argparse.Namespace) -> list[str]:
    """The names of the options of `add_model_options` that the command line holds."""
    names = (*STARTS, *(field.name for field in fields(GPTConfig)))
    return [name for name in names if getattr(parsed, name, None) is not None]


def add_step_options(parser: argparse.ArgumentParser, batch_size: int | None = 2) -> None:
    """Declare the size of a training step. No default for the batch size: the command takes a run's own, or else 2."""
    default = "" if batch_size else " (default: 2, or the run's)"
    parser.add_argument("--batch-size", type=int, default=batch_size, help=f"sequences in a training step{default}")
    parser.add_argument("--tokens", type=int, help="sequence length of a training step (default: context_length)")


def add_compute_options(parser: argparse.ArgumentParser) -> None:
    """Declare how a step is computed: the options of `GPTModel` that change time and memory."""
    parser.add_argument(
        "--attention",
        choices=ATTENTIONS,
        help="flash: tile by tile, faster at 1024 tokens, and smaller (default: math)",
    )
    parser.add_argument(
        "--checkpoint-activations",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compute each block again in the backward: less memory, a fifth more time",
    )


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
