"""numpygpt info: the parameters and the memory of a model."""

import argparse
from pathlib import Path
from typing import Any

from numpygpt.commands.model_options import (
    add_compute_options,
    add_model_options,
    add_step_options,
    config_of,
    flag,
    given_model_options,
    tokens_of,
)
from numpygpt.commands.tables import print_table
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import read_checkpoint
from numpygpt.model import sizes as memory
from numpygpt.model.saving import saved_config, saved_tokenizer
from numpygpt.training.book import perplexity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="folder of a training run")
    add_step_options(parser, batch_size=None)
    parser.add_argument("--dtype", choices=("float32", "float64"), help="(default: float32, or the run's)")
    add_compute_options(parser)
    add_model_options(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print the parameters of a model part by part, and the memory that a training step takes."""
    step: dict[str, Any] = {"batch_size": 2, "dtype": "float32", "attention": "math", "checkpoint_activations": False}
    if parsed.checkpoint:
        if given_model_options(parsed):
            flags = ", ".join(map(flag, given_model_options(parsed)))
            raise InputError(f"the model of --checkpoint has its own sizes; leave out {flags}")
        checkpoint = read_checkpoint(parsed.checkpoint)
        config = saved_config(checkpoint)
        saved_run = checkpoint.values("run") if "run" in checkpoint else {}
        step |= {name: value for name, value in saved_run.get("options", {}).items() if name in step}
        print(f"{checkpoint.path}: tokenizer {saved_tokenizer(checkpoint)}, step {saved_run.get('step')}")
        for last in saved_run.get("history", [])[-1:]:
            loss = last["val_loss"]
            print(f"validation loss {loss:.3f} nats a token, perplexity {perplexity(loss):.2f} (step {last['step']})")
    else:
        config = config_of(parsed)
    step |= {name: getattr(parsed, name) for name in step if getattr(parsed, name) is not None}
    tokens = tokens_of(step["batch_size"], parsed.tokens, config)
    print("".join(f"{name} {value}\n" for name, value in config.to_dict().items()))
    rows = memory.parameter_table(config)
    total = memory.Row("total", "parameters", sum(row.parameters for row in rows))
    print_table("lrl", [(row.name, f"{row.parameters:,}", row.detail) for row in (*rows, total)])
    print(f"\na training step on {step['batch_size']} x {tokens} tokens in {step['dtype']}, AdamW:")
    parts = memory.training_bytes(config, tokens=tokens, **step)
    print_table("lr", [(name, f"{size / 2**20:,.1f} MiB") for name, size in parts._asdict().items()])
    return 0
