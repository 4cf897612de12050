"""Run chapters 4 and 5 of "Build a Large Language Model (From Scratch)", and print each figure beside the book's own.

    python scripts/reproduce_book.py                     # in NumPy alone; the ten epochs take some minutes
    python scripts/reproduce_book.py --backend torch     # the same in PyTorch
    python scripts/reproduce_book.py --compare runs/book-numpy runs/book-torch

After Ctrl-C, the same command goes on from there; after a crash, it goes on from the end of the last epoch. Exit
status: 0 if every figure is the book's, 1 if one differs or not all could be printed, 2 for unusable input, 130 if
interrupted. --compare takes a run by NumPy and one by PyTorch of the same sitting. Its status is 0 if they print the
same, and NumPy's time, memory and masks stay within their bounds.

The verdict on a figure is "same", "close" (except for last digits, which depend on the order of float32 sums) or
"DIFFERS". The seeds are set where the book sets them: before a model is made, before losses are measured, and before
text is sampled.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from book import figures
from book.log import BookLog
from book.record import Record, compare, print_costs
from book.report import Report
from tqdm import tqdm

from numpygpt.data.story import find_verdict
from numpygpt.data.texts import read_text, split_text
from numpygpt.data.tokenizer import Encoding, get_tokenizer
from numpygpt.errors import BAD_INPUT, INTERRUPTED, InputError
from numpygpt.files import locked
from numpygpt.formats.checkpoint import FILE_NAME
from numpygpt.model.config import GPT_CONFIG_124M, GPTConfig
from numpygpt.output import NOT_TOLD, output_may_fail
from numpygpt.pictures.temperatures import plot_temperatures
from numpygpt.training.corpus import TRAIN_SHARE
from numpygpt.training.loop import Every, Plan, train
from numpygpt.training.options import Options
from numpygpt.training.run import TrainingRun, make_writable

SEED = 123
CHAPTER_4_CONFIG = GPTConfig.of(GPT_CONFIG_124M)
CONFIG = replace(CHAPTER_4_CONFIG, context_length=256)
OPTIONS = Options(
    tokenizer="gpt2",
    batch_size=2,
    lr=4e-4,
    schedule="constant",
    warmup_steps=0,
    weight_decay=0.1,
    decay="all",
    clip=0.0,
    eval_every=5,
    eval_batches=5,
    sample_prompt=figures.START,
    seed=SEED,
)

#: Two losses, in nats a token, count as the same up to this difference: the order of their sums may differ.
SAME_LOSS = 1e-5


# The chapters


def chapter_4(listings: Any, report: Report) -> None:
    """Report on the model and its first words."""
    report.heading("Chapter 4: the model")
    listings.manual_seed(SEED)
    model = listings.new_model(CHAPTER_4_CONFIG)
    parameters = listings.num_parameters(model)
    report.figure("parameters", f"{parameters:,}", figures.PARAMETERS)
    tied = parameters - CHAPTER_4_CONFIG.vocab_size * CHAPTER_4_CONFIG.emb_dim
    report.figure("parameters, were the head tied", f"{tied:,}", figures.PARAMETERS_TIED)
    report.figure("megabytes of float32", f"{4 * parameters / 2**20:.2f}", figures.MEGABYTES)
    report.figure("untrained, greedy 6 tokens", listings.write(model, "Hello, I am", 6), figures.CHAPTER_4_TEXT)


def chapter_5_before_training(listings: Any, report: Report, text: str) -> float:
    """Report on text, losses and perplexity of the untrained model; returns the seconds that making it took."""
    report.heading("Chapter 5: before training")
    began = time.perf_counter()
    listings.manual_seed(SEED)
    model = listings.new_model(CONFIG)
    seconds = time.perf_counter() - began
    report.figure("untrained, greedy 10 tokens", listings.write(model, figures.START, 10), figures.UNTRAINED_TEXT)
    six_probabilities(listings, report, model)
    report.figure("characters", str(len(text)), figures.CHARACTERS)
    report.figure("tokens", str(len(listings.tokenizer.encode(text))), figures.TOKENS)
    train_loader, val_loader = (
        listings.loader(part, OPTIONS.batch_size, CONFIG.context_length, training=training)
        for part, training in zip(split_text(text, TRAIN_SHARE), (True, False), strict=True)
    )
    report.figure("training batches", batches(train_loader), figures.TRAINING_BATCHES)
    report.figure("validation batches", batches(val_loader), figures.VALIDATION_BATCHES)
    listings.manual_seed(SEED)
    for what, loader, books in (
        ("training", train_loader, figures.UNTRAINED_TRAINING_LOSS),
        ("validation", val_loader, figures.UNTRAINED_VALIDATION_LOSS),
    ):
        loss = listings.loader_loss(loader, model)
        report.figure(f"untrained {what} loss", str(loss), str(books), abs(loss - books) <= SAME_LOSS)
    return seconds


def six_probabilities(listings: Any, report: Report, model: Any) -> None:
    """Report on the model's probabilities for two short texts."""
    probabilities = listings.probabilities(model, figures.INPUTS)
    report.figure("likeliest next tokens", str(probabilities.argmax(axis=-1).tolist()), figures.LIKELIEST_TOKENS)
    here = np.take_along_axis(probabilities, np.array(figures.TARGETS)[..., np.newaxis], axis=-1).ravel()
    books = np.array(figures.TARGET_PROBABILITIES.split(), float)
    last_digit = 10 ** (np.floor(np.log10(books)) - 4)  # it depends on rounding, in PyTorch on the machine too
    same = bool((abs(here - books) <= last_digit).all())
    text = " ".join(f"{p:.4e}" for p in here)
    report.figure("probabilities of the targets", text, figures.TARGET_PROBABILITIES, same)
    loss = listings.batch_loss(model, figures.INPUTS, figures.TARGETS)
    report.figure("cross-entropy of the targets", f"{loss:.4f}", figures.CROSS_ENTROPY)
    perplexity = math.exp(loss)
    same = abs(loss - math.log(figures.PERPLEXITY)) <= SAME_LOSS  # it has more digits than the loss has in float32
    report.figure("perplexity", f"{perplexity:.4f}", f"{figures.PERPLEXITY:.4f}", same)


def batches(loader: Any) -> str:
    """How many batches there are, and their shapes."""
    shapes = {tuple(inputs.shape) for inputs, _ in loader}
    return f"{len(loader)} x {', '.join(map(str, shapes))}"


def chapter_5_after_training(listings: Any, report: Report, model: Any) -> None:
    """Report on the text of the trained model."""
    report.heading("Chapter 5: after training")
    report.figure("trained, greedy 25 tokens", listings.write(model, figures.START, 25), figures.TRAINED_GREEDY_TEXT)
    listings.manual_seed(SEED)
    text = listings.write(model, figures.START, 15, temperature=1.4, top_k=25)
    report.figure("trained, 15 tokens, top_k 25, temperature 1.4", text, figures.TRAINED_SAMPLED_TEXT)


def chapter_5_nine_words(listings: Any, report: Report, directory: Path) -> None:
    """Report on temperature and top-k over a vocabulary of nine words, and draw temperatures.png."""
    report.heading("Chapter 5: nine words")
    logits = listings.array(figures.WORD_LOGITS)
    by_temperature = {t: listings.package.softmax_with_temperature(logits, t) for t in figures.TEMPERATURES}
    likeliest = int(np.argmax(figures.WORD_LOGITS))
    report.figure("likeliest", f"{likeliest} {figures.WORDS[likeliest]}", figures.LIKELIEST_WORD)
    report.figure("1000 draws, seed 123", drawn_words(listings, by_temperature[1]), figures.DRAWN_WORDS)
    pizza = float(by_temperature[5][figures.WORDS.index("pizza")])
    report.figure("pizza at temperature 5", f"{100 * pizza:.0f} %", figures.PIZZA_AT_TEMPERATURE_5)
    top_3 = zip(figures.WORDS, listings.top_k_probabilities(figures.WORD_LOGITS, 3), strict=True)
    report.figure("top 3", ", ".join(f"{word} {p:.4f}" for word, p in top_3 if p), figures.TOP_3_PROBABILITIES)
    plot_temperatures(figures.WORDS, by_temperature, directory / "temperatures.png")


def drawn_words(listings: Any, probabilities: Any) -> str:
    """The words that `print_sampled_tokens` drew, with their counts."""
    with redirect_stdout(StringIO()) as printed:
        listings.package.print_sampled_tokens(probabilities, figures.WORDS)
    counts = (line.split(" x ") for line in printed.getvalue().splitlines())
    return ", ".join(f"{count} {word}" for count, word in counts if count != "0")


# Training


def start_or_resume(
    listings: Any, options: Options, config: GPTConfig, directory: Path, record: Record, *, overwrite: bool
) -> tuple[TrainingRun, Record]:
    """The run in the folder, as it was left, or a new one; and its record. InputError if another run is there."""
    if overwrite or not (directory / FILE_NAME).exists():
        return TrainingRun.start(listings.training, options, config, directory, overwrite=overwrite), record
    run = TrainingRun.resume(
        listings.training, directory, text=options.text, vocab=options.vocab, steps=options.steps
    )
    if (run.options, run.config) != (options.settled(), config):
        raise InputError(
            f"{directory} holds another run than the book's; replace it with --overwrite, or choose another --out"
        )
    if not run.step:
        return run, record
    found = Record.load(directory)
    if found.backend != record.backend:
        raise InputError(
            f"{directory} holds a run by {found.backend}, whose times would be mixed with those of {record.backend}; "
            f"replace it with --overwrite, or choose another --out"
        )
    record = found
    record.step_losses, record.step_seconds = record.step_losses[: run.step], record.step_seconds[: run.step]
    record.samples = record.samples[: run.step // run.backend.batches_in_an_epoch()]
    return run, record


def train_as_in_the_book(run: TrainingRun, record: Record, report: Report) -> Path:
    """Take the book's training run to its end, or until Ctrl-C; first show again what it had printed before.

    It is saved at the end of each epoch, so that a crash loses one epoch at most. Returns the checkpoint's path.
    """
    tqdm.write("\nChapter 5: training")
    epoch = run.backend.batches_in_an_epoch()
    plan = Plan(
        evaluations=Every(run.options.eval_every, first=1),
        samples=Every(epoch, first=epoch),
        saves=Every(epoch, first=epoch),
        keep_best=False,
    )
    return train(run, plan, BookLog(record, report))


def chapter_5_training(listings: Any, report: Report, run: TrainingRun, record: Record) -> None:
    """Train, and report on the trained model; writes the checkpoint, the record and the loss curves."""
    written = [train_as_in_the_book(run, record, report)]
    if run.step:
        model = listings.trained(run.backend)
        record.mask_seconds = listings.mask_seconds(model, OPTIONS.batch_size, CONFIG.context_length)
        written += [record.save(run.directory), run.plot()]
        print_costs(record)
    tqdm.write(f"\nwrote {', '.join(map(str, written))}")
    if run.finished:
        if run.step == figures.EPOCHS * run.backend.batches_in_an_epoch():
            chapter_5_after_training(listings, report, listings.trained(run.backend))
        record.figures = report.exact
        record.save(run.directory)


# The command


def run_book(parsed: argparse.Namespace) -> int:
    """Do everything in the book's order; returns the exit status."""
    text_file = find_verdict(parsed.text)
    tokenizer = get_tokenizer("gpt2", parsed.vocab)
    listings, report = new_listings(parsed.backend, tokenizer), Report()
    directory = parsed.out or Path("runs") / f"book-{parsed.backend}"
    make_writable(directory)
    text = read_text(text_file)
    chapter_4(listings, report)
    seconds = chapter_5_before_training(listings, report, text)
    if parsed.epochs:
        options = replace(
            OPTIONS, text=(str(text_file),), vocab=parsed.vocab, steps=parsed.epochs * figures.BATCHES_IN_AN_EPOCH
        )
        record = Record(parsed.backend, seconds)
        with locked(directory):
            run, record = start_or_resume(listings, options, CONFIG, directory, record, overwrite=parsed.overwrite)
            chapter_5_training(listings, report, run, record)
        if not run.finished:
            command = "the same command without --overwrite" if parsed.overwrite else "the same command"
            tqdm.write(f"stopped after step {run.step} of {options.steps}; {command} goes on from there")
            return INTERRUPTED
    chapter_5_nine_words(listings, report, directory)
    return report.conclude()


def new_listings(name: str, tokenizer: Encoding) -> Any:
    """The book's listings in numpygpt or torchgpt; the other package is not imported."""
    import_module(f"{name}gpt")  # if PyTorch is missing, the error says how to install it
    return import_module(f"book.{name}_listings").Listings(tokenizer)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backend", choices=("numpy", "torch"), default="numpy", help="what computes (default: numpy)")
    add("--epochs", type=int, default=figures.EPOCHS, help="0: only what needs no training (default: the book's 10)")
    add("--text", metavar="FILE", help="the-verdict.txt (default: the one that ships with numpygpt)")
    add("--vocab", metavar="FILE", help="gpt2.tiktoken (default: the one that ships with numpygpt)")
    add("--out", type=Path, metavar="DIR", help="folder for what it writes (default: runs/book-BACKEND)")
    add("--overwrite", action="store_true", help="replace the run in --out instead of going on with it")
    add("--compare", nargs=2, type=Path, metavar="DIR", help="only compare the runs in two such folders")
    parsed = parser.parse_args(arguments)
    try:
        if parsed.compare:
            return compare([Record.load(directory) for directory in parsed.compare])
        if parsed.epochs < 0:
            raise InputError(f"--epochs is {parsed.epochs}; expected 0 or more")
        with output_may_fail() as output:
            status = run_book(parsed)
        return status or (NOT_TOLD if output.failure else 0)
    except (InputError, ImportError) as error:
        print(f"reproduce_book: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
