"""numpygpt train: a model learns from text."""

import argparse
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from numpygpt.commands.model_options import (
    add_compute_options,
    add_model_options,
    config_of,
    flag,
    given_model_options,
)
from numpygpt.data.tokenizer import TOKENIZERS, get_tokenizer
from numpygpt.errors import INTERRUPTED, InputError
from numpygpt.training.run import SCHEDULES, Options, TrainingRun, stop_between_steps

#: What a resumed run may change: none of it changes a number that a step computes.
CHANGEABLE = {"steps", "save_every", "sample_every", "sample_prompt", "checkpoint_activations"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="DIR", help="folder for the run (default: runs/DATE-TIME)")
    where.add_argument(
        "--resume", type=Path, metavar="DIR", help="continue the run in this folder; with --steps for longer"
    )
    add("--overwrite", action="store_true", help="replace a run that is already in --out")
    add("--text", nargs="+", metavar="FILE", help="text to learn from (default: the language reference of this Python)")
    add("--tokenizer", choices=TOKENIZERS, help=_default("tokenizer"))
    add("--vocab", metavar="FILE", help="file of GPT-2's ranks, for --tokenizer gpt2 (default: found or downloaded)")
    for name, kind, meaning in (
        ("steps", int, "optimizer steps"),
        ("batch_size", int, "windows in a micro-batch"),
        ("accumulate", int, "micro-batches in a step"),
        ("lr", float, "peak learning rate"),
        ("min_lr", float, "learning rate at the end of the cosine"),
        ("warmup_steps", int, "steps of linear warm-up"),
        ("weight_decay", float, "AdamW's weight decay"),
        ("clip", float, "largest norm of the gradient; 0: any"),
        ("eval_every", int, "steps between evaluations"),
        ("eval_batches", int, "batches in an evaluation, of training and of validation text"),
        ("sample_every", int, "steps between samples; 0: none"),
        ("sample_prompt", str, "what the samples continue"),
        ("save_every", int, "steps between checkpoints; 0: only at the end"),
        ("seed", int, "of weights, batches and dropout"),
    ):
        add(flag(name), type=kind, help=f"{meaning} {_default(name)}")
    add("--schedule", choices=SCHEDULES, help=f"learning-rate schedule {_default('schedule')}")
    add("--dtype", choices=("float32", "float64"), help=_default("dtype"))
    add_compute_options(parser)
    add_model_options(parser, vocab_size=False)


def _default(name: str) -> str:
    return f"(default: {getattr(Options, name)})"


def run(parsed: argparse.Namespace) -> int:
    """Train a model on text. Ctrl-C saves and says how to go on."""
    given = {field.name: getattr(parsed, field.name) for field in fields(Options)}
    given = {name: tuple(value) if name == "text" else value for name, value in given.items() if value is not None}
    if parsed.resume:
        training = TrainingRun.resume(parsed.resume, **_changes_to_a_resumed_run(parsed, given))
    else:
        options = Options(**given)
        config = config_of(parsed, vocab_size=get_tokenizer(options.tokenizer, options.vocab).n_vocab)
        directory = parsed.out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}"
        training = TrainingRun.start(options, config, directory, overwrite=parsed.overwrite)
    print(
        f"{training.model.num_parameters():,} parameters; {len(training.train_loader)} training batches of "
        f"{training.options.batch_size} x {training.config.context_length} tokens; "
        f"{training.options.steps - training.step} steps to do"
    )
    return _run_with_progress(training)


def _changes_to_a_resumed_run(parsed: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    fixed = sorted({*given, *given_model_options(parsed)} - CHANGEABLE)
    if fixed:
        flags = ", ".join(map(flag, fixed))
        raise InputError(f"{flags} cannot change in a resumed run; leave them out, or start a new run with --out")
    return given


def _run_with_progress(training: TrainingRun) -> int:
    from tqdm import tqdm

    options = training.options
    total = options.steps * training.tokens_per_step
    losses: dict[str, str] = {}
    with (
        stop_between_steps() as stop,
        tqdm(total=total, initial=training.tokens_seen, unit="token", unit_scale=True, dynamic_ncols=True) as bar,
    ):
        if not training.history:
            _show_evaluation(training, losses, bar)
        while not training.finished and not stop.requested:
            losses["loss"] = f"{training.train_step():.3f}"
            bar.update(training.tokens_per_step)
            bar.set_postfix(losses)
            if training.step % options.eval_every == 0 or training.finished:
                _show_evaluation(training, losses, bar)
            if options.sample_every and (training.step % options.sample_every == 0 or training.finished):
                bar.write(f"step {training.step}: {training.sample()}")
            if options.save_every and training.step % options.save_every == 0:
                training.save()
        checkpoint = training.save()
    print(f"wrote {checkpoint}")
    print(f"wrote {training.plot()}")
    if not training.finished:
        print(
            f"stopped after step {training.step} of {options.steps}; "
            f"go on with: numpygpt train --resume {training.directory}"
        )
        return INTERRUPTED
    print(f'let it write: numpygpt generate --checkpoint {training.directory} --prompt "{options.sample_prompt}"')
    return 0


def _show_evaluation(training: TrainingRun, losses: dict[str, str], bar: Any) -> None:
    entry = training.evaluate()
    losses["val"] = f"{entry.val_loss:.3f}"
    bar.set_postfix(losses)
    bar.write(
        f"step {entry.step}: training loss {entry.train_loss:.3f}, "
        f"validation loss {entry.val_loss:.3f} nats a token"
    )
