"""torchgpt train: a model learns from text, in PyTorch."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch

from numpygpt.commands import train
from numpygpt.commands.model_options import STARTS, add_run_options, config_of, given_run_options
from numpygpt.commands.tables import print_table
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import FILE_NAME
from numpygpt.model.config import GPTConfig
from numpygpt.model.scheme import Scheme
from numpygpt.model.sizes import num_parameters
from numpygpt.training import sliced
from numpygpt.training.options import PRESET_OPTIONS, Options
from torchgpt.engine.backend import Maker
from torchgpt.engine.device import device_of, may_be_gpu
from torchgpt.engine.precision import autocast_of
from torchgpt.engine.progress import NoProgress, TorchProgress, event_writer
from torchgpt.engine.settings import Settings
from torchgpt.parallel import meta
from torchgpt.parallel.team import RESTARTS, connected, environment_rank, join, leave

#: A file in the folder of a run that torchrun has begun with --overwrite.
BEGUN = ".begun"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    train.add_arguments(parser)
    own = {field.name for field in fields(Settings)} - {field.name for field in fields(Options)}
    add_run_options(parser.add_argument_group("PyTorch"), own, of=Settings)


def run(parsed: argparse.Namespace) -> int:
    """Train a model on text, on a GPU or on many. Ctrl-C saves and says how to go on.

    On several GPUs or machines: torchrun --nproc-per-node 8 -m torchgpt train --parallel fsdp --out DIR ...
    A process that dies is started again by torchrun --max-restarts 3, and the run goes on from its last checkpoint.
    """
    given = given_run_options(parsed, of=Settings)
    settings = Settings(**given)
    if settings.device == "meta":
        return _show_shares(parsed, settings)
    try:
        with connected(), gpu_memory_told():
            team = join(on_gpus=may_be_gpu(settings.device), time_limit=float(settings.time_limit))
            device = team.agree(lambda: device_of(settings.device))
            team.agree(lambda: refuse_what_is_not_here(settings, device, parsed.dtype or "float32"))
            if team.first_does(lambda: _is_restarted(parsed.out, overwrite=parsed.overwrite)):
                parsed = _resumed(parsed)
            maker = Maker(settings, team, device, given)
            return train.train_with(maker, parsed, TorchProgress if team.is_first else NoProgress)
    finally:
        leave()


@contextmanager
def gpu_memory_told() -> Iterator[None]:
    """Within the `with`, a GPU whose memory is short is one line, from whichever process has it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = (
            f"the memory of the GPU of process {environment_rank()} is short: {str(error).splitlines()[0]:.160}; take "
            f"a smaller --batch-size with a larger --accumulate, --attention flash, or --checkpoint-activations"
        )
        if environment_rank():  # the first process says only what it meets itself
            print(f"torchgpt: error: {reason}", file=sys.stderr)
        raise InputError(reason) from error


def refuse_what_is_not_here(settings: Settings, device: torch.device, dtype: str) -> None:
    """Raise InputError for a precision that the device does not have, and for a package that is missing."""
    autocast_of(settings.precision, device, dtype)
    if settings.tensorboard:
        event_writer()


def _is_restarted(out: Path | None, *, overwrite: bool) -> bool:
    """Whether torchrun has started this run again, and it has saved something before.

    A run that is to overwrite another notes when it begins, so that what the other has saved is not taken for its own.
    """
    if out is None or RESTARTS not in os.environ:
        return False
    begun = out / BEGUN
    if os.environ[RESTARTS] == "0":
        if overwrite and out.is_dir():
            begun.touch()
        return False
    since = begun.stat().st_mtime if overwrite and begun.exists() else 0.0
    saved = [out / FILE_NAME, *(sliced.path_of(out, step) for step in sliced.steps(out))]
    return any(path.exists() and path.stat().st_mtime > since for path in saved)


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
