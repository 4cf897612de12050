"""The book's training functions: chapter 5, and appendix D with warm-up, cosine decay and clipping.

The losses serve chapter 6, too, whose targets are a class for each text (`numpygpt.tuning.book`).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from numpygpt.data.loader import DataLoader
from numpygpt.data.tokenizer import Encoding, text_to_token_ids, token_ids_to_text
from numpygpt.decoding.generation import generate_text_simple
from numpygpt.errors import InputError
from numpygpt.evaluation.perplexity import perplexity as perplexity  # beside the losses, as in the book
from numpygpt.model.gpt import GPTModel
from numpygpt.ops import cross_entropy
from numpygpt.random.masks import RandomSource
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array
from numpygpt.training.optimizer import Optimizer
from numpygpt.training.schedules import warmup_cosine
from numpygpt.training.step import training_step

#: What appendix D clips the norm of the gradients to.
MAX_NORM = 1.0

def calc_loss_batch(input_batch: Array, target_batch: Array, model: GPTModel) -> float:
    """The mean cross-entropy of one batch, in nats, without dropout.

    input_batch    (B, T) token ids
    target_batch   (B, T): the next tokens; or, as in chapter 6, (B): the classes of the texts, whose scores are read at
                   the last of the T tokens, be it padding or not
    """
    logits, targets = model(input_batch), np.asarray(target_batch)
    if targets.ndim == 1:
        logits = logits[:, -1]
    loss, _ = cross_entropy.forward(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
    return float(loss)


def calc_loss_loader(data_loader: DataLoader, model: GPTModel, num_batches: int | None = None) -> float:
    """The mean of `calc_loss_batch` over the loader's first `num_batches` batches, or over all; NaN for no batch."""
    n_batches = len(data_loader) if num_batches is None else min(num_batches, len(data_loader))
    if n_batches == 0:
        return math.nan
    batches = islice(data_loader, n_batches)
    return sum(calc_loss_batch(inputs, targets, model) for inputs, targets in batches) / n_batches


def evaluate_model(
    model: GPTModel, train_loader: DataLoader, val_loader: DataLoader, eval_iter: int
) -> tuple[float, float]:
    """The training and the validation loss, each over `eval_iter` batches, in nats, without dropout."""
    return calc_loss_loader(train_loader, model, eval_iter), calc_loss_loader(val_loader, model, eval_iter)


def sample_text(model: GPTModel, tokenizer: Encoding, start_context: str, max_new_tokens: int = 50) -> str:
    """`start_context` and `max_new_tokens` more tokens, each the likeliest after those before it, on one line."""
    token_ids = generate_text_simple(
        model,
        text_to_token_ids(start_context, tokenizer),
        max_new_tokens=max_new_tokens,
        context_size=model.config.context_length,
    )
    return token_ids_to_text(token_ids, tokenizer).replace("\n", " ")


def generate_and_print_sample(model: GPTModel, tokenizer: Encoding, start_context: str) -> None:
    """Print `start_context` and 50 more tokens, each the likeliest after those before it, on one line."""
    print(sample_text(model, tokenizer, start_context))


def loss_line(epoch: int, global_step: int, train_loss: float, val_loss: float, step: str = "Step") -> str:
    """The book's line of losses after step `global_step` in epoch `epoch`, both counted from 0."""
    return f"Ep {epoch + 1} ({step} {global_step:06d}): Train loss {train_loss:.3f}, Val loss {val_loss:.3f}"


class Tracked(NamedTuple):
    """What the book's loop notes.

    train_losses, val_losses, track_seen   an entry for each line of losses
    seen                                   how many tokens or texts the whole training has seen
    """

    train_losses: list[float]
    val_losses: list[float]
    track_seen: list[int]
    seen: int


def run_epochs(
    train_loader: Iterable[tuple[Any, Any]],
    num_epochs: int,
    eval_freq: int,
    *,
    take_step: Callable[[int, Any, Any], object],
    evaluate: Callable[[], tuple[float, float]],
    end_epoch: Callable[[], object],
    size: Callable[[Any], int],
    step: str = "Step",
) -> Tracked:
    """The loop of the book's training functions, in NumPy and in PyTorch. It prints a line of losses now and then.

    eval_freq   how many steps there are from one evaluation to the next; the first is after the first step
    take_step   trains on one batch: its number from 0, the inputs, the targets
    evaluate    the training and the validation loss
    end_epoch   what is done after each epoch
    size        how many tokens, or texts, the inputs of a batch are
    step        what the printed line calls a step
    """
    train_losses: list[float] = []
    val_losses: list[float] = []
    track_seen: list[int] = []
    seen, global_step = 0, -1
    for epoch in range(num_epochs):
        for input_batch, target_batch in train_loader:
            global_step += 1
            take_step(global_step, input_batch, target_batch)
            seen += size(input_batch)
            if global_step % eval_freq == 0:
                train_loss, val_loss = evaluate()
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                track_seen.append(seen)
                print(loss_line(epoch, global_step, train_loss, val_loss, step))
        end_epoch()
    return Tracked(train_losses, val_losses, track_seen, seen)


def train_model_simple(
    model: GPTModel,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: Optimizer,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer: Encoding,
    *,
    rng: RandomSource | None = None,
) -> tuple[list[float], list[float], list[int]]:
    """Train for `num_epochs` epochs. Print a line of losses every `eval_freq` steps, and a sample after each epoch.

    This is the book's listing, for those who follow it. `numpygpt train` has another loop, `numpygpt.training.loop`,
    which also accumulates, schedules the learning rate, and saves.

    eval_iter   how many batches an evaluation takes, of training and of validation
    rng         draws the dropout masks if the model's drop_rate is not 0; None: a generator with a fresh seed. If it is
                also the generator of the loaders, all draws are those of the book's run in PyTorch

    Returns train_losses and val_losses, in nats a token, and track_tokens_seen, with an entry for each line of losses.
    """
    rng = TorchGenerator() if rng is None else rng
    tracked = run_epochs(
        train_loader,
        num_epochs,
        eval_freq,
        take_step=lambda _, inputs, targets: training_step(model, optimizer, [(inputs, targets)], rng=rng),
        evaluate=lambda: evaluate_model(model, train_loader, val_loader, eval_iter),
        end_epoch=lambda: generate_and_print_sample(model, tokenizer, start_context),
        size=np.size,
    )
    return tracked.train_losses, tracked.val_losses, tracked.track_seen


def train_model(
    model: GPTModel,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: Optimizer,
    n_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer: Encoding,
    warmup_steps: int,
    initial_lr: float = 3e-05,
    min_lr: float = 1e-6,
    *,
    rng: RandomSource | None = None,
) -> tuple[list[float], list[float], list[int], list[float]]:
    """The training of appendix D: `train_model_simple` with `book_rate`, and with clipping from then on.

    After the warm-up, the gradients are clipped to a common norm of 1 (`clips`). The optimizer's learning rate is the
    highest of the run, and afterwards the last of it.

    warmup_steps   how many steps the rate rises
    initial_lr     the rate of the first step
    min_lr         what the rate falls to

    Returns what `train_model_simple` returns, and track_lrs, the learning rate of each step. Raises InputError for
    negative warmup_steps.
    """
    rng = TorchGenerator() if rng is None else rng
    rate_of = book_rate(optimizer.lr, len(train_loader) * n_epochs, warmup_steps, initial_lr, min_lr)
    track_lrs: list[float] = []

    def take_step(global_step: int, inputs: Array, targets: Array) -> None:
        optimizer.lr = rate_of(global_step)
        track_lrs.append(optimizer.lr)
        max_norm = MAX_NORM if clips(global_step, warmup_steps) else None
        training_step(model, optimizer, [(inputs, targets)], rng=rng, max_norm=max_norm)

    tracked = run_epochs(
        train_loader,
        n_epochs,
        eval_freq,
        take_step=take_step,
        evaluate=lambda: evaluate_model(model, train_loader, val_loader, eval_iter),
        end_epoch=lambda: generate_and_print_sample(model, tokenizer, start_context),
        size=np.size,
        step="Iter",
    )
    return tracked.train_losses, tracked.val_losses, tracked.track_seen, track_lrs


def book_rate(
    peak_lr: float, total_steps: int, warmup_steps: int, initial_lr: float, min_lr: float
) -> Callable[[int], float]:
    """The learning rate of step 0, 1, ... in appendix D: linear from initial_lr to peak_lr, then a cosine to min_lr.

    The warm-up differs from that of `numpygpt.training.schedules`: step 0 has initial_lr, and step warmup_steps is the
    first with peak_lr. The cosine is the same. Raises InputError for negative warmup_steps.
    """
    if warmup_steps < 0:
        raise InputError(f"warmup_steps is {warmup_steps}; expected 0 or more")

    def rate(step: int) -> float:
        if step < warmup_steps:
            return initial_lr + step * ((peak_lr - initial_lr) / warmup_steps)
        return warmup_cosine(
            step, peak_lr=peak_lr, warmup_steps=warmup_steps, total_steps=total_steps, min_lr=min_lr
        )

    return rate


def clips(global_step: int, warmup_steps: int) -> bool:
    """Whether appendix D clips the gradients of this step, counted from 0: as soon as the warm-up is over.

    The printed book has `global_step > warmup_steps`, which leaves out the first step after the warm-up. Its code has
    been corrected since, and this is the corrected form.
    """
    return global_step >= warmup_steps


def find_highest_gradient(grads: Mapping[str, Array]) -> float:
    """The largest value in the gradients {name: gradient}. It is not the largest absolute value."""
    return max(float(gradient.max()) for gradient in grads.values())
