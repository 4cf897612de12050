"""numpygpt info: the parameters and the memory of a model."""

import argparse
from pathlib import Path
from typing import Any

from numpygpt.commands.model_options import (
    add_compute_options,
    add_model_options,
    add_step_options,
    config_of,
    refuse_model_options,
    tokens_of,
)
from numpygpt.commands.tables import print_table
from numpygpt.commands.trained import CHECKPOINT_HELP, origin_of
from numpygpt.formats.kinds import read_model
from numpygpt.model import sizes
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import saved_config
from numpygpt.sections import named_in_errors, value_of
from numpygpt.training.book import perplexity
from numpygpt.training.options import Options
from numpygpt.training.run import SECTION, Evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help=CHECKPOINT_HELP)
    add_step_options(parser, batch_size=None)
    parser.add_argument("--dtype", choices=("float32", "float64"), help="(default: float32, or the run's)")
    add_compute_options(parser)
    add_model_options(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print the parameters of a model part by part, and the memory that a training step takes."""
    step: dict[str, Any] = {"batch_size": 2, "dtype": "float32", "attention": "math", "checkpoint_activations": False}
    if parsed.checkpoint:
        config, options, lines = _of_a_run(parsed)
        step |= {name: getattr(options, name) for name in step if options is not None}
    else:
        config, lines = config_of(parsed), []
    step |= {name: getattr(parsed, name) for name in step if getattr(parsed, name) is not None}
    tokens = tokens_of(step["batch_size"], parsed.tokens, config)
    for line in (*lines, *(f"{name} {value}" for name, value in config.to_dict().items()), ""):
        print(line)
    rows = sizes.parameter_table(config)
    total = sizes.Row("total", "parameters", sum(row.parameters for row in rows))
    print_table("lrl", [(row.name, f"{row.parameters:,}", row.detail) for row in (*rows, total)])
    print(f"\na training step on {step['batch_size']} x {tokens} tokens in {step['dtype']}, AdamW:")
    parts = sizes.training_bytes(config, tokens=tokens, **step)
    print_table("lr", [(name, f"{size / 2**20:,.1f} MiB") for name, size in parts._asdict().items()])
    return 0


def _of_a_run(parsed: argparse.Namespace) -> tuple[GPTConfig, Options | None, list[str]]:
    """The configuration and the options of the run in --checkpoint, and the lines that say how far it has come."""
    refuse_model_options(parsed)
    checkpoint = read_model(parsed.checkpoint)
    config = saved_config(checkpoint)
    origin, *notes = origin_of(checkpoint)
    if SECTION not in checkpoint:
        return config, None, [f"{origin}, a model without a training run", *notes]
    saved = checkpoint.values(SECTION)
    with named_in_errors(checkpoint):
        options = Options.of(value_of(saved, "options", dict))
        history = [Evaluation.of(entry) for entry in value_of(saved, "history", list)]
        lines = [f"{origin}, step {value_of(saved, 'step', int)}"]
    if history:
        last = history[-1]
        lines.append(
            f"validation loss {last.val_loss:.3f} nats a token, perplexity {perplexity(last.val_loss):.2f} "
            f"(step {last.step})"
        )
    return config, options, lines
