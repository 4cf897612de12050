"""The command `torchgpt`: numpygpt's words for what runs in PyTorch, on one GPU or on many."""

import os
from collections.abc import Sequence

from numpygpt.commands.main import Program, run_program

PROGRAM = Program(
    name="torchgpt",
    description="The same GPT in PyTorch: train it on GPUs, compare it with NumPy.",
    package="torchgpt.commands",
    commands={
        "train": "train a model on text, on one GPU or on many",
        "finetune": "tune a trained model on more text, whole or with an adapter, on one GPU",
        "parity": "check every tensor of a training step against PyTorch",
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, as `numpygpt.commands.main.run_program` does.

    Of the processes that torchrun starts, the first one alone says why something could not be done.
    """
    return run_program(PROGRAM, arguments, says_why=os.environ.get("RANK", "0") in ("", "0"))
