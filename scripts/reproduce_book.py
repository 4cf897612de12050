"""Chapters 4 and 5 of "Build a Large Language Model (From Scratch)", figure by figure, beside the book's own.

    python scripts/reproduce_book.py                     # in NumPy alone, no PyTorch needed; minutes for ten epochs
    python scripts/reproduce_book.py --backend torch     # the same in PyTorch
    python scripts/reproduce_book.py --compare runs/book-numpy runs/book-torch

Ctrl-C keeps what was done, and the same command goes on from there; after a crash, from the end of the last epoch.
Exit status: 0 where every figure is the book's, 1 where one differs, 2 for unusable input, 130 when interrupted.
--compare takes a run by NumPy and one by PyTorch of the same sitting: 0 where they print the same and NumPy's time,
memory and masks stay within their bounds.

The verdict on a figure is "same", "close" (but for last digits, which hang on the order of float32 sums) or "DIFFERS".
The seeds are set where the book sets them: before a model is made, before losses are measured, before text is sampled.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from book import figures
from book.record import Record, compare, peak_memory_bytes, print_costs
from book.report import Report
from tqdm import tqdm

from numpygpt.data.story import find_verdict
from numpygpt.data.texts import read_text, split_text
from numpygpt.data.tokenizer import Encoding, get_tokenizer
from numpygpt.errors import BAD_INPUT, INTERRUPTED, InputError
from numpygpt.model.config import GPT_CONFIG_124M, GPTConfig
from numpygpt.pictures.losses import plot_losses
from numpygpt.pictures.temperatures import plot_temperatures
from numpygpt.training.book import loss_line
from numpygpt.training.run import TRAIN_SHARE, Options, make_writable, stop_between_steps

SEED = 123
CHAPTER_4_CONFIG = GPTConfig.of(GPT_CONFIG_124M)
CONFIG = replace(CHAPTER_4_CONFIG, context_length=256)
OPTIONS = Options(
    tokenizer="gpt2",
    batch_size=2,
    lr=4e-4,
    schedule="constant",
    weight_decay=0.1,
    clip=0.0,
    eval_every=5,
    eval_batches=5,
    sample_prompt=figures.START,
    seed=SEED,
)

#: Two losses that were computed in another order of sums are the same up to this (nats a token).
SAME_LOSS = 1e-5


# The chapters


def chapter_4(backend: Any, report: Report) -> None:
    """The model, and its first words."""
    report.heading("Chapter 4: the model")
    backend.manual_seed(SEED)
    model = backend.new_model(CHAPTER_4_CONFIG)
    parameters = backend.num_parameters(model)
    report.figure("parameters", f"{parameters:,}", figures.PARAMETERS)
    tied = parameters - CHAPTER_4_CONFIG.vocab_size * CHAPTER_4_CONFIG.emb_dim
    report.figure("parameters, were the head tied", f"{tied:,}", figures.PARAMETERS_TIED)
    report.figure("megabytes of float32", f"{4 * parameters / 2**20:.2f}", figures.MEGABYTES)
    report.figure("untrained, greedy 6 tokens", backend.write(model, "Hello, I am", 6), figures.CHAPTER_4_TEXT)


def chapter_5_before_training(backend: Any, report: Report, text: str) -> float:
    """Text, losses and perplexity of the untrained model; returns the seconds that making it took."""
    report.heading("Chapter 5: before training")
    began = time.perf_counter()
    backend.manual_seed(SEED)
    model = backend.new_model(CONFIG)
    seconds = time.perf_counter() - began
    report.figure("untrained, greedy 10 tokens", backend.write(model, figures.START, 10), figures.UNTRAINED_TEXT)
    six_probabilities(backend, report, model)
    report.figure("characters", str(len(text)), figures.CHARACTERS)
    report.figure("tokens", str(len(backend.tokenizer.encode(text))), figures.TOKENS)
    train_loader, val_loader = (
        backend.loader(part, OPTIONS.batch_size, CONFIG.context_length, training=training)
        for part, training in zip(split_text(text, TRAIN_SHARE), (True, False), strict=True)
    )
    report.figure("training batches", batches(train_loader), figures.TRAINING_BATCHES)
    report.figure("validation batches", batches(val_loader), figures.VALIDATION_BATCHES)
    backend.manual_seed(SEED)
    for what, loader, books in (
        ("training", train_loader, figures.UNTRAINED_TRAINING_LOSS),
        ("validation", val_loader, figures.UNTRAINED_VALIDATION_LOSS),
    ):
        loss = backend.loader_loss(loader, model)
        report.figure(f"untrained {what} loss", str(loss), str(books), abs(loss - books) <= SAME_LOSS)
    return seconds


def six_probabilities(backend: Any, report: Report, model: Any) -> None:
    """What the model says of two short texts."""
    probabilities = backend.probabilities(model, figures.INPUTS)
    report.figure("likeliest next tokens", str(probabilities.argmax(axis=-1).tolist()), figures.LIKELIEST_TOKENS)
    here = np.take_along_axis(probabilities, np.array(figures.TARGETS)[..., np.newaxis], axis=-1).ravel()
    books = np.array(figures.TARGET_PROBABILITIES.split(), float)
    last_digit = 10 ** (np.floor(np.log10(books)) - 4)  # hangs on rounding errors: PyTorch's too, by machine
    same = bool((abs(here - books) <= last_digit).all())
    text = " ".join(f"{p:.4e}" for p in here)
    report.figure("probabilities of the targets", text, figures.TARGET_PROBABILITIES, same)
    loss = backend.batch_loss(model, figures.INPUTS, figures.TARGETS)
    report.figure("cross-entropy of the targets", f"{loss:.4f}", figures.CROSS_ENTROPY)
    perplexity = math.exp(loss)
    same = abs(loss - math.log(figures.PERPLEXITY)) <= SAME_LOSS  # its digits are more than the loss has in float32
    report.figure("perplexity", f"{perplexity:.4f}", f"{figures.PERPLEXITY:.4f}", same)


def batches(loader: Any) -> str:
    """How many, and their shapes."""
    shapes = {tuple(inputs.shape) for inputs, _ in loader}
    return f"{len(loader)} x {', '.join(map(str, shapes))}"


def chapter_5_after_training(backend: Any, report: Report, model: Any) -> None:
    """Text of the trained model."""
    report.heading("Chapter 5: after training")
    report.figure("trained, greedy 25 tokens", backend.write(model, figures.START, 25), figures.TRAINED_GREEDY_TEXT)
    backend.manual_seed(SEED)
    text = backend.write(model, figures.START, 15, temperature=1.4, top_k=25)
    report.figure("trained, 15 tokens, top_k 25, temperature 1.4", text, figures.TRAINED_SAMPLED_TEXT)


def chapter_5_nine_words(backend: Any, report: Report, directory: Path) -> None:
    """Temperature and top-k over a vocabulary of nine words; draws temperatures.png."""
    report.heading("Chapter 5: nine words")
    logits = backend.array(figures.WORD_LOGITS)
    by_temperature = {t: backend.package.softmax_with_temperature(logits, t) for t in figures.TEMPERATURES}
    likeliest = int(np.argmax(figures.WORD_LOGITS))
    report.figure("likeliest", f"{likeliest} {figures.WORDS[likeliest]}", figures.LIKELIEST_WORD)
    report.figure("1000 draws, seed 123", drawn_words(backend, by_temperature[1]), figures.DRAWN_WORDS)
    pizza = float(by_temperature[5][figures.WORDS.index("pizza")])
    report.figure("pizza at temperature 5", f"{100 * pizza:.0f} %", figures.PIZZA_AT_TEMPERATURE_5)
    top_3 = zip(figures.WORDS, backend.top_k_probabilities(figures.WORD_LOGITS, 3), strict=True)
    report.figure("top 3", ", ".join(f"{word} {p:.4f}" for word, p in top_3 if p), figures.TOP_3_PROBABILITIES)
    plot_temperatures(figures.WORDS, by_temperature, directory / "temperatures.png")


def drawn_words(backend: Any, probabilities: Any) -> str:
    """The words that came up in print_sampled_tokens."""
    with redirect_stdout(StringIO()) as printed:
        backend.package.print_sampled_tokens(probabilities, figures.WORDS)
    counts = (line.split(" x ") for line in printed.getvalue().splitlines())
    return ", ".join(f"{count} {word}" for count, word in counts if count != "0")


# Training


def start_or_resume(
    backend: Any, options: Options, config: GPTConfig, directory: Path, record: Record, *, overwrite: bool
) -> tuple[Any, Record]:
    """The run in the folder where it was left, or a new one. InputError where another run is there."""
    if overwrite or not (directory / backend.checkpoint).exists():
        return backend.Run.start(options, config, directory, overwrite=overwrite), record
    run = backend.Run.resume(directory, text=options.text, vocab=options.vocab, steps=options.steps)
    if (run.options, run.config) != (options, config):
        raise InputError(
            f"{directory} holds another run than the book's; replace it with --overwrite, or choose another --out"
        )
    record = Record.load(directory)
    record.step_losses, record.step_seconds = record.step_losses[: run.step], record.step_seconds[: run.step]
    record.samples = record.samples[: run.step // len(run.train_loader)]
    return run, record


def train(run: Any, record: Record, report: Report) -> None:
    """The book's training run to its end, or until Ctrl-C, with what it had printed before at the top.

    Every epoch but the last is saved at its end, so that a crash loses no more than one; no time counts this.
    """
    tqdm.write("\nChapter 5: training")
    for step in range(1, run.step + 1):
        show_step(run, record, report, step)
    total = run.options.steps * run.tokens_per_step
    with (
        stop_between_steps() as stop,
        tqdm(total=total, initial=run.tokens_seen, unit="token", unit_scale=True, dynamic_ncols=True) as bar,
    ):
        while not run.finished and not stop.requested:
            began = time.perf_counter()
            record.step_losses.append(run.train_step())
            record.step_seconds.append(time.perf_counter() - began)
            if (run.step - 1) % run.options.eval_every == 0:
                run.evaluate()
            epoch_ends = run.step % len(run.train_loader) == 0
            if epoch_ends:
                record.samples.append(run.sample())
            show_step(run, record, report, run.step)
            bar.update(run.tokens_per_step)
            bar.set_postfix_str(f"step {run.step}/{run.options.steps}, loss {record.step_losses[-1]:.3f}")
            record.training_seconds += time.perf_counter() - began
            if epoch_ends and not run.finished:
                save(run, record)
    record.evaluations = [asdict(evaluation) for evaluation in run.history]


def show_step(run: Any, record: Record, report: Report, step: int) -> None:
    """The lines that the book prints after the step (1, 2, ...), if any."""
    epoch, batch = divmod(step - 1, len(run.train_loader))
    number, until_evaluation = divmod(step - 1, run.options.eval_every)
    if not until_evaluation:
        losses = run.history[number].train_loss, run.history[number].val_loss
        books = figures.LOSS_LINES[number] if number < len(figures.LOSS_LINES) else None
        report.line(loss_line(epoch, step - 1, *losses), books)
    if batch + 1 == len(run.train_loader):
        books = figures.START + figures.SAMPLES[epoch] if epoch < figures.EPOCHS else None
        report.line(record.samples[epoch], books)


def save(run: Any, record: Record) -> list[Path]:
    """Write the record and the checkpoint: the record first, for a run resumes at its checkpoint's step."""
    record.peak_memory_bytes = max(record.peak_memory_bytes, peak_memory_bytes())
    return [record.save(run.directory), run.save()]


def keep(run: Any, record: Record) -> None:
    """Write the record, the checkpoint and the curves."""
    written = save(run, record)
    if run.history:
        written.append(run.directory / "losses.png")
        epochs, tokens, train_losses, val_losses = (
            [getattr(entry, column) for entry in run.history]
            for column in ("epochs_seen", "tokens_seen", "train_loss", "val_loss")
        )
        plot_losses(epochs, tokens, train_losses, val_losses, written[-1])
    tqdm.write(f"\nwrote {', '.join(map(str, written))}")


# The command


def run_book(parsed: argparse.Namespace) -> int:
    """All of it, in the book's order."""
    text_file = find_verdict(parsed.text)
    tokenizer = get_tokenizer("gpt2", parsed.vocab)
    backend, report = new_backend(parsed.backend, tokenizer), Report()
    directory = parsed.out or Path("runs") / f"book-{parsed.backend}"
    make_writable(directory)
    text = read_text(text_file)
    chapter_4(backend, report)
    seconds = chapter_5_before_training(backend, report, text)
    if parsed.epochs:
        options = replace(
            OPTIONS, text=(str(text_file),), vocab=parsed.vocab, steps=parsed.epochs * figures.BATCHES_IN_AN_EPOCH
        )
        record = Record(parsed.backend, seconds)
        run, record = start_or_resume(backend, options, CONFIG, directory, record, overwrite=parsed.overwrite)
        train(run, record, report)
        if not run.step:
            return INTERRUPTED
        record.mask_seconds = backend.mask_seconds(run.model, OPTIONS.batch_size, CONFIG.context_length)
        keep(run, record)
        print_costs(record)
        if not run.finished:
            command = "the same command without --overwrite" if parsed.overwrite else "the same command"
            tqdm.write(f"stopped after step {run.step} of {options.steps}; {command} goes on from there")
            return INTERRUPTED
        if run.step == figures.EPOCHS * len(run.train_loader):
            chapter_5_after_training(backend, report, run.model)
        record.figures = report.exact
        record.save(directory)
    chapter_5_nine_words(backend, report, directory)
    return report.conclude()


def new_backend(name: str, tokenizer: Encoding) -> Any:
    """The one asked for; the other is not imported."""
    import_module(f"{name}gpt")  # says what to install, if it must
    return import_module(f"book.{name}_backend").Backend(tokenizer)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backend", choices=("numpy", "torch"), default="numpy", help="what computes (default: numpy)")
    add("--epochs", type=int, default=figures.EPOCHS, help="0: only what needs no training (default: the book's 10)")
    add("--text", metavar="FILE", help="the-verdict.txt (default: from the folder NUMPYGPT_DATA, or fetched)")
    add("--vocab", metavar="FILE", help="gpt2.tiktoken (default: from the folder NUMPYGPT_DATA, or fetched)")
    add("--out", type=Path, metavar="DIR", help="folder for what it writes (default: runs/book-BACKEND)")
    add("--overwrite", action="store_true", help="replace the run in --out instead of going on with it")
    add("--compare", nargs=2, type=Path, metavar="DIR", help="only compare the runs in two such folders")
    parsed = parser.parse_args(arguments)
    try:
        if parsed.compare:
            return compare([Record.load(directory) for directory in parsed.compare])
        if parsed.epochs < 0:
            raise InputError(f"--epochs is {parsed.epochs}; expected 0 or more")
        return run_book(parsed)
    except (InputError, ImportError) as error:
        print(f"reproduce_book: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
