"""torchgpt finetune: a trained model learns from more text in PyTorch, whole or with adapters."""

import argparse
import os
from dataclasses import fields

from numpygpt.commands import finetune
from numpygpt.commands.model_options import add_run_options, given_run_options
from numpygpt.commands.train import train_with
from numpygpt.errors import InputError
from numpygpt.training.team import OneProcess
from torchgpt.commands.train import gpu_memory_told, refuse_what_is_not_here
from torchgpt.engine.device import device_of
from torchgpt.engine.finetuning import FinetuneMaker
from torchgpt.engine.progress import TorchProgress
from torchgpt.engine.settings import Settings

#: How a model is tuned in PyTorch; the other settings are for several processes, or for the weights of a whole model.
SETTINGS = ("device", "kernels", "log_every", "tensorboard")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    finetune.add_arguments(parser)
    declared = {field.name for field in fields(FinetuneMaker.options_type)}
    others = {field.name: None for field in fields(Settings) if field.name not in (*SETTINGS, *declared)}
    parser.set_defaults(**others)
    add_run_options(parser.add_argument_group("PyTorch"), SETTINGS, of=Settings)


def run(parsed: argparse.Namespace) -> int:
    """Tune a trained model on text, in one process, on a CPU or a GPU. Ctrl-C saves and says how to go on.

    It takes the steps of `numpygpt finetune`, and either goes on with what the other has begun. Adapters need the
    library peft, and --quantize nf4 beside them the library bitsandbytes.
    """
    refuse_several_processes()
    given = given_run_options(parsed, of=Settings)
    settings = Settings(**given)
    if settings.device == "meta":
        raise InputError("--device meta says how processes would share a model, and finetune has one; leave it out")
    device = device_of(settings.device)
    refuse_what_is_not_here(settings, device, parsed.dtype or "float32")
    maker = FinetuneMaker(settings, OneProcess(), device, given)
    with gpu_memory_told():
        return train_with(maker, parsed, TorchProgress, finetune.begun_with)


def refuse_several_processes() -> None:
    """Raise InputError if torchrun has started more processes than this one."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size not in ("", "1"):
        raise InputError(
            f"torchgpt finetune computes in one process, and torchrun has started {size}; start it without torchrun"
        )
