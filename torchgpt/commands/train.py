"""torchgpt train: a model learns from text, in PyTorch."""

import argparse
import os
from dataclasses import fields
from pathlib import Path

import torch

from numpygpt.commands import train
from numpygpt.commands.model_options import STARTS, add_run_options, config_of, given_run_options
from numpygpt.commands.tables import print_table
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.formats.checkpoint import FILE_NAME
from numpygpt.model.config import GPTConfig
from numpygpt.model.scheme import Scheme
from numpygpt.model.sizes import num_parameters
from numpygpt.training import sliced
from numpygpt.training.options import PRESET_OPTIONS, Options
from torchgpt.engine.backend import Maker
from torchgpt.engine.device import device_of
from torchgpt.engine.precision import autocast_of
from torchgpt.engine.progress import NoProgress, TorchProgress, event_writer
from torchgpt.engine.settings import Settings
from torchgpt.parallel import meta
from torchgpt.parallel.team import RESTARTS, join, leave


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    train.add_arguments(parser)
    add_run_options(parser.add_argument_group("PyTorch"), of=Settings)


def run(parsed: argparse.Namespace) -> int:
    """Train a model on text, on a GPU or on many. Ctrl-C saves and says how to go on.

    On several GPUs or machines: torchrun --nproc-per-node 8 -m torchgpt train --parallel fsdp --out DIR ...
    A process that dies is started again by torchrun --max-restarts 3, and the run goes on from its last checkpoint.
    """
    given = given_run_options(parsed, of=Settings)
    settings = Settings(**given)
    if settings.device == "meta":
        return _show_shares(parsed, settings)
    device = device_of(settings.device)
    team = join(device.type, time_limit=float(settings.time_limit))
    try:
        team.agree(lambda: _refuse_what_is_not_here(settings, device, parsed.dtype or "float32"))
        maker = Maker(settings, team, device, given)
        if _is_restarted(parsed.out):
            parsed = _resumed(parsed)
        return train.train_with(maker, parsed, TorchProgress if team.is_first else NoProgress)
    finally:
        leave()


def _refuse_what_is_not_here(settings: Settings, device: torch.device, dtype: str) -> None:
    """Raise InputError for a precision that the device does not have, and for a package that is missing."""
    autocast_of(settings.precision, device, dtype)
    if settings.tensorboard:
        event_writer()


def _is_restarted(out: Path | None) -> bool:
    """Whether torchrun has started this run again, and it has saved something before."""
    if out is None or os.environ.get(RESTARTS, "0") == "0":
        return False
    return (out / FILE_NAME).exists() or bool(sliced.steps(out))


def _resumed(parsed: argparse.Namespace) -> argparse.Namespace:
    """The command line with --resume in the place of --out, without the options that a resumed run keeps."""
    kept = dict.fromkeys((*STARTS, *(field.name for field in fields(GPTConfig) if field.name != "vocab_size")))
    kept |= {field.name: None for field in fields(Options)}
    return argparse.Namespace(**{**vars(parsed), **kept, "out": None, "overwrite": False, "resume": parsed.out})


def _show_shares(parsed: argparse.Namespace, settings: Settings) -> int:
    """Print what each process would hold of the weights. Nothing is allocated, and nothing is trained."""
    options = Options.of({**PRESET_OPTIONS.get(parsed.preset, {}), **given_run_options(parsed)})
    config = config_of(parsed, vocab_size=get_tokenizer(options.tokenizer, options.vocab).n_vocab)
    scheme = Scheme.of(settings.parallel or "ddp=1", None)
    rows = []
    for rank in range(scheme.size):
        held = meta.held_by(rank, config, scheme, getattr(torch, options.dtype))
        size = sum(share.bytes for share in held.values())
        rows.append((str(rank), str(len(held)), f"{size / 2**20:,.1f} MiB"))
    print(f"{scheme}: what each of {scheme.size} processes would hold of {num_parameters(config):,} parameters")
    print_table("rrr", rows, head=("process", "parameters", "bytes"))
    return 0
