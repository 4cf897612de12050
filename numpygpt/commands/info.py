"""numpygpt info: the parameters and the memory of a model."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.adapt.packed import forms_of
from numpygpt.commands.model_options import (
    add_compute_options,
    add_model_options,
    add_run_options,
    add_step_options,
    config_of,
    refuse_model_options,
    tokens_of,
)
from numpygpt.commands.tables import print_table
from numpygpt.commands.trained import CHECKPOINT_HELP, options_of_run, origin_of
from numpygpt.commands.tuned_sizes import TunedSizes, tuned_sizes
from numpygpt.errors import InputError
from numpygpt.formats.kinds import read_model
from numpygpt.model import parallel_sizes, sizes
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import saved_config
from numpygpt.model.scheme import Scheme
from numpygpt.numerics.forms import Form, unfilled
from numpygpt.sections import named_in_errors, value_of
from numpygpt.training.book import perplexity
from numpygpt.training.optimizers import OPTIMIZERS, settings_of, state_bytes, state_bytes_of
from numpygpt.training.options import Options
from numpygpt.training.run import SECTION, Evaluation
from numpygpt.tree import named

#: The precisions that are compared if none is named, by the dtype of the parameters. TF32 takes as much as fp32.
PRECISIONS_COMPARED = {"float32": ("fp32", "bf16", "fp16"), "float64": ("fp32",)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help=CHECKPOINT_HELP)
    add_step_options(parser, batch_size=None)
    parser.add_argument("--dtype", choices=("float32", "float64"), help="(default: float32, or the run's)")
    add_compute_options(parser)
    add_run_options(parser, ("optimizer", "momentum", "optimizer_state"))
    add_scheme_options(parser)
    add_model_options(parser)


def add_scheme_options(parser: argparse.ArgumentParser) -> None:
    """Declare what asks for the memory that `torchgpt train` takes on each device."""
    devices = parser.add_argument_group("on several devices, by torchgpt train")
    devices.add_argument(
        "--parallel",
        metavar="SCHEME",
        help="compare what a device holds under each scheme, for as many devices as this one has: ddp=8, fsdp=8, tp=4, "
        "pp=4, or several, as in fsdp=4,tp=2",
    )
    devices.add_argument(
        "--precision",
        choices=tuple(parallel_sizes.PRECISIONS),
        help="the format of the products (default: each of them, with --parallel)",
    )
    devices.add_argument("--accumulate", type=int, help="micro-batches in a step (default: 1, or the run's)")


def run(parsed: argparse.Namespace) -> int:
    """Print the parameters of a model part by part, and the memory that a training step takes."""
    step: dict[str, Any] = {
        "batch_size": 2, "dtype": "float32", "attention": "math", "checkpoint_activations": False, "accumulate": 1
    }  # fmt: skip
    tuned = None
    if parsed.checkpoint:
        config, options, tuned, lines = _of_a_run(parsed)
        step |= {name: getattr(options, name) for name in step if options is not None}
    else:
        config, options, lines = config_of(parsed), None, []
    step |= {name: getattr(parsed, name) for name in step if getattr(parsed, name) is not None}
    tokens = tokens_of(step["batch_size"], parsed.tokens, config)
    accumulate = step.pop("accumulate")
    optimizer = _optimizer_of(parsed, options)
    devices = _devices(parsed, config, parallel_sizes.Step(tokens=tokens, micro_batches=accumulate, **step), optimizer)
    for line in (*lines, *(f"{name} {value}" for name, value in config.to_dict().items()), ""):
        print(line)
    rows = sizes.parameter_table(config)
    total = sizes.Row("total", "parameters", sum(row.parameters for row in rows))
    print_table("lrl", [(row.name, f"{row.parameters:,}", row.detail) for row in (*rows, total)])
    title = OPTIMIZERS[optimizer.kind].__name__
    print(f"\na training step on {step['batch_size']} x {tokens} tokens in {step['dtype']}, {title}:")
    state = _state_bytes(optimizer.kind, optimizer.settings, step["dtype"], config, tuned)
    in_memory = 0 if optimizer.on_disk else state
    parts = sizes.training_bytes(config, tokens=tokens, **step, optimizer=in_memory)
    if tuned is not None:
        parts = tuned.step(parts, step["dtype"], in_memory)
    print_table("lr", [(name, f"{size / 2**20:,.1f} MiB") for name, size in parts._asdict().items()])
    if optimizer.on_disk:
        print(f"on the disk, the optimizer's moments: {state / 2**20:,.1f} MiB")
    _print_optimizers(partial(_state_bytes, dtype=step["dtype"], config=config, tuned=tuned), optimizer)
    for precision, compared in devices.items():
        _print_devices(precision, compared)
    return 0


class _Optimizer(NamedTuple):
    """The optimizer of a step: its name, its hyper-parameters, and whether its moments are on the disk."""

    kind: str
    settings: dict[str, Any]
    on_disk: bool


def _optimizer_of(parsed: argparse.Namespace, run: Options | None) -> _Optimizer:
    """The optimizer that the command line names, or the run's. InputError for a momentum that it does not have."""
    begun = run or Options()
    kind = parsed.optimizer or begun.optimizer
    kept = begun.momentum if kind == begun.optimizer else None
    settings = settings_of(kind, {"momentum": kept if parsed.momentum is None else parsed.momentum})
    return _Optimizer(kind, settings, (parsed.optimizer_state or begun.optimizer_state) == "disk")


def _state_bytes(
    kind: str, settings: dict[str, Any], dtype: str, config: GPTConfig, tuned: TunedSizes | None
) -> int:
    """The bytes of an optimizer's moments of all that is trained."""
    if tuned is None:
        return state_bytes(kind, settings, config, dtype)
    return state_bytes_of(kind, settings, tuned.shapes, dtype)


def _print_optimizers(bytes_of: Callable[[str, dict[str, Any]], int], chosen: _Optimizer) -> None:
    """Print the bytes of the moments of each optimizer, each with its defaults, except for the chosen one."""
    print("\nwhat each --optimizer keeps of what is trained, in MiB:")
    rows = []
    for kind in OPTIMIZERS:
        settings = chosen.settings if kind == chosen.kind else settings_of(kind, {})
        rows.append((kind, f"{bytes_of(kind, settings) / 2**20:,.1f}"))
    print_table("lr", rows)


def _devices(
    parsed: argparse.Namespace, config: GPTConfig, step: parallel_sizes.Step, optimizer: _Optimizer
) -> dict[str, list[parallel_sizes.Compared]]:
    """What a device holds under each scheme, by precision; nothing if neither a scheme nor a precision is asked for.

    Raises InputError for another optimizer than AdamW, whose moments on many devices are not counted.
    """
    if parsed.parallel is None and parsed.precision is None:
        return {}
    if optimizer.kind != "adamw" or optimizer.on_disk:
        raise InputError(
            "what devices hold is counted for AdamW in memory alone; add --optimizer adamw --optimizer-state memory, "
            "or leave out --parallel and --precision"
        )
    scheme = Scheme() if parsed.parallel is None else Scheme.of(parsed.parallel, None)
    precisions = [parsed.precision] if parsed.precision else PRECISIONS_COMPARED[step.dtype]
    return {
        precision: parallel_sizes.comparison(config, step._replace(precision=precision), scheme)
        for precision in precisions
    }


def _print_devices(precision: str, compared: list[parallel_sizes.Compared]) -> None:
    print(f"\non a device of torchgpt train, products in {precision}, in MiB:")
    head = ("", *parallel_sizes.DeviceBytes._fields, "total")
    held = [(row.name, row.held) for row in compared if row.held]
    rows = [(name, *(f"{size / 2**20:,.1f}" for size in (*parts, parts.total))) for name, parts in held]
    print_table("l" + "r" * (len(head) - 1), rows, head=head)
    for row in compared:
        if row.held is None:
            print(f"{row.name}: {row.refusal}")


def _of_packed_matrices(forms: dict[str, Form]) -> list[str]:
    """A line for each kind of quantized matrices: how many they are, and their bytes."""
    kinds: dict[str, list[Form]] = {}
    for form in forms.values():
        words = f"{form.scheme}{',double' if form.double else ''},block={form.block_size}"
        kinds.setdefault(words, []).append(form)
    lines = []
    for words, alike in kinds.items():
        size = sum(array.nbytes for form in alike for _, array in named(unfilled(form)))
        share = size / (4 * sum(form.size for form in alike))
        lines.append(f"{len(alike)} matrices in {words}: {size:,} bytes, {share:.3f} of those in float32")
    return lines


def _loss_in_words(options: Options, loss: float) -> str:
    """The validation loss of a run. That of the next token has a perplexity, too."""
    of_tokens = getattr(options, "objective", "next-token") == "next-token"
    also = f", perplexity {perplexity(loss):.2f}" if of_tokens else ""
    return f"validation loss {loss:.3f} {options.loss_unit}{also}"


def _of_a_run(
    parsed: argparse.Namespace,
) -> tuple[GPTConfig, Options | None, TunedSizes | None, list[str]]:
    """What is in --checkpoint: configuration, options of its run, what was adapted, and the lines that tell of them."""
    refuse_model_options(parsed)
    checkpoint = read_model(parsed.checkpoint)
    config = saved_config(checkpoint)
    origin, *notes = origin_of(checkpoint)
    tuned = tuned_sizes(checkpoint)
    notes += _of_packed_matrices(forms_of(checkpoint) if tuned is None else tuned.forms)
    if SECTION not in checkpoint:
        return config, None, tuned, [f"{origin}, a model without a training run", *notes]
    saved = checkpoint.values(SECTION)
    options = options_of_run(checkpoint)
    with named_in_errors(checkpoint):
        history = [Evaluation.of(entry) for entry in value_of(saved, "history", list)]
        lines = [f"{origin}, step {value_of(saved, 'step', int)}"]
    if history:
        last = history[-1]
        lines.append(f"{_loss_in_words(options, last.val_loss)} (step {last.step})")
    return config, options, tuned, [*lines, *([] if tuned is None else tuned.lines), *notes]
