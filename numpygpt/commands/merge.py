"""numpygpt merge: one model of a base and its adapter."""

import argparse
from pathlib import Path

from numpygpt.adapt.adapters import merge_lora, paths_of, remove_lora
from numpygpt.adapt.quantized import dequantize
from numpygpt.commands.trained import add_adapter_options, add_checkpoint_options, trained_model
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import FILE_NAME, write_checkpoint
from numpygpt.formats.kinds import read_model, refuse_other_models
from numpygpt.model.saving import model_section, saved_tokenizer
from numpygpt.training.run import make_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_checkpoint_options(parser)
    add_adapter_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the model")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is already in --out")


def run(parsed: argparse.Namespace) -> int:
    """Add an adapter to the weights of its base, and write the model, which needs neither of them any more.

    The adapter is the one that `numpygpt finetune` trained, with --checkpoint alone, or one in a folder of peft's, with
    --adapter. A quantized base becomes whole.
    """
    if (parsed.out / FILE_NAME).exists() and not parsed.overwrite:
        raise InputError(f"{parsed.out} already holds a model; replace it with --overwrite, or choose another --out")
    for name in ("checkpoint", "base", "adapter"):
        given = getattr(parsed, name)
        if given is not None and given.exists() and parsed.out.exists() and parsed.out.samefile(given):
            raise InputError(f"{parsed.out} is the folder of --{name}, which would be lost; choose another --out")
    refuse_other_models(parsed.out)
    checkpoint = read_model(parsed.checkpoint)
    model = trained_model(checkpoint, parsed)
    count = len(paths_of(model))
    if not count:
        raise InputError(f"{parsed.checkpoint} has no adapter; name one with --adapter, or the folder of its run")
    make_writable(parsed.out)
    model = dequantize(remove_lora(merge_lora(model)))
    path = write_checkpoint(parsed.out, {"model": model_section(model, saved_tokenizer(checkpoint))})
    print(f"added the adapter of {count} projections to their weights")
    print(f"wrote {path}")
    return 0
