"""torchgpt finetune: a trained model learns more in PyTorch, whole or with adapters."""

import argparse
from dataclasses import fields

from numpygpt.commands import finetune
from numpygpt.commands.model_options import add_run_options, given_run_options
from numpygpt.commands.train import train_with
from numpygpt.errors import InputError
from torchgpt.commands.train import gpu_memory_told, refuse_what_is_not_here
from torchgpt.engine.device import device_of, may_be_gpu
from torchgpt.engine.progress import NoProgress, TorchProgress
from torchgpt.engine.settings import Settings
from torchgpt.engine.tuners import FinetuneMaker
from torchgpt.parallel.team import connected, join, leave

#: How a model is tuned in PyTorch. The others are for a model's first weights, or for runs of many machines.
SETTINGS = ("device", "kernels", "log_every", "tensorboard", "parallel", "time_limit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    finetune.add_arguments(parser)
    declared = {field.name for field in fields(FinetuneMaker.options_type)}
    others = {field.name: None for field in fields(Settings) if field.name not in (*SETTINGS, *declared)}
    parser.set_defaults(**others)
    add_run_options(parser.add_argument_group("PyTorch"), SETTINGS, of=Settings)


def run(parsed: argparse.Namespace) -> int:
    """Tune a trained model, on a CPU, a GPU, or several. Ctrl-C saves and says how to go on.

    It takes the steps of `numpygpt finetune`, and either goes on with what the other has begun. Adapters need the
    library peft, and --quantize nf4 beside them the library bitsandbytes; both are computed in one process. All weights
    are tuned by several: torchrun --nproc-per-node 2 -m torchgpt finetune --parallel fsdp --out DIR ...
    """
    given = given_run_options(parsed, of=Settings)
    settings = Settings(**given)
    if settings.device == "meta":
        raise InputError("--device meta says how processes would share a first model; leave it out")
    try:
        with connected(), gpu_memory_told():
            team = join(on_gpus=may_be_gpu(settings.device), time_limit=float(settings.time_limit))
            device = team.agree(lambda: device_of(settings.device))
            team.agree(lambda: refuse_what_is_not_here(settings, device, parsed.dtype or "float32"))
            maker = FinetuneMaker(settings, team, device, given)
            return train_with(maker, parsed, TorchProgress if team.is_first else NoProgress, finetune.begun_with)
    finally:
        leave()
