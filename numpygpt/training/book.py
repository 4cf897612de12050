"""The book's training functions (chapter 5)."""

import math
from itertools import islice

import numpy as np

from numpygpt.data.loader import DataLoader
from numpygpt.data.tokenizer import Encoding, text_to_token_ids, token_ids_to_text
from numpygpt.decoding.generation import generate_text_simple
from numpygpt.evaluation.perplexity import perplexity as perplexity  # beside the losses, as in the book
from numpygpt.model.gpt import GPTModel
from numpygpt.ops import cross_entropy
from numpygpt.random.masks import RandomSource
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array
from numpygpt.training.optimizer import Optimizer
from numpygpt.training.step import training_step


def calc_loss_batch(input_batch: Array, target_batch: Array, model: GPTModel) -> float:
    """The mean cross-entropy of one batch (B, T), in nats a token, without dropout."""
    logits = model(input_batch)
    loss, _ = cross_entropy.forward(logits.reshape(-1, logits.shape[-1]), np.asarray(target_batch).reshape(-1))
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
    """The training and the validation loss, each over `eval_iter` batches, in nats a token, without dropout."""
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


def loss_line(epoch: int, global_step: int, train_loss: float, val_loss: float) -> str:
    """The book's line of losses after step `global_step` in epoch `epoch`, both counted from 0."""
    return f"Ep {epoch + 1} (Step {global_step:06d}): Train loss {train_loss:.3f}, Val loss {val_loss:.3f}"


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
    train_losses: list[float] = []
    val_losses: list[float] = []
    track_tokens_seen: list[int] = []
    tokens_seen, global_step = 0, -1
    for epoch in range(num_epochs):
        for input_batch, target_batch in train_loader:
            training_step(model, optimizer, [(input_batch, target_batch)], rng=rng)
            tokens_seen += input_batch.size
            global_step += 1
            if global_step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, eval_iter)
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                track_tokens_seen.append(tokens_seen)
                print(loss_line(epoch, global_step, train_loss, val_loss))
        generate_and_print_sample(model, tokenizer, start_context)
    return train_losses, val_losses, track_tokens_seen
