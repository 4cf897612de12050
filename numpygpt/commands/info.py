"""numpygpt info: the parameters and the memory of a model."""

import argparse
from pathlib import Path

import numpy as np

from numpygpt import memory
from numpygpt.checkpoint import load_checkpoint
from numpygpt.commands.model_options import (
    add_compute_options,
    add_model_options,
    add_step_options,
    config_of,
    tokens_of,
)
from numpygpt.training import perplexity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="folder of a training run")
    add_step_options(parser)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    add_compute_options(parser)
    add_model_options(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print the parameters of a model part by part, and the memory that a training step takes."""
    if parsed.checkpoint:
        checkpoint = load_checkpoint(parsed.checkpoint)
        config = checkpoint.config
        print(f"{checkpoint.path}: tokenizer {checkpoint.tokenizer}, step {checkpoint.training.get('step')}")
        for last in checkpoint.training.get("history", [])[-1:]:
            loss = last["val_loss"]
            print(f"validation loss {loss:.3f} nats a token, perplexity {perplexity(loss):.2f} (step {last['step']})")
    else:
        config = config_of(parsed)
    tokens = tokens_of(parsed, config)
    print("".join(f"{name} {value}\n" for name, value in config.to_dict().items()))
    rows = memory.parameter_table(config)
    for row in rows:
        print(f"{row.name:<12}{row.parameters:>15,}   {row.detail}")
    print(f"{'total':<12}{sum(row.parameters for row in rows):>15,}   parameters\n")
    print(f"a training step on {parsed.batch_size} x {tokens} tokens in {parsed.dtype}, AdamW:")
    parts = memory.training_bytes(
        config,
        parsed.batch_size,
        tokens,
        np.dtype(parsed.dtype),
        attention=parsed.attention or "math",
        checkpoint_activations=bool(parsed.checkpoint_activations),
    )
    for name, size in parts._asdict().items():
        print(f"{name:<12}{size / 2**20:>15,.1f} MiB")
    return 0
