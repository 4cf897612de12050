"""The book's data loader and training functions on tensors (chapters 2 and 5, appendix D).

They draw from PyTorch's default generator exactly as the book's listings do, so a seed gives the book's batches,
masks and losses.
"""

from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.data.windows import GPTDatasetV1
from numpygpt.pictures.losses import plot_losses
from numpygpt.training.book import MAX_NORM, book_rate, clips, run_epochs
from torchgpt.generation import generate_text_simple, text_to_token_ids, token_ids_to_text
from torchgpt.model import GPTModel

__all__ = [
    "calc_loss_batch",
    "calc_loss_loader",
    "create_dataloader_v1",
    "evaluate_model",
    "find_highest_gradient",
    "generate_and_print_sample",
    "plot_losses",
    "train_model",
    "train_model_simple",
]


def create_dataloader_v1(
    txt: str,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
    *,
    tokenizer: Any = None,
) -> DataLoader:
    """The book's loader: batches (inputs, targets) of windows of `txt`, both (batch_size, max_length) int64.

    A window starts every `stride` tokens. Its targets are the window that starts one token later. `tokenizer` is
    GPT-2's by default. Raises InputError as `numpygpt.data.windows.GPTDatasetV1` does, which cuts the windows.
    """
    windows = GPTDatasetV1(txt, tokenizer or get_tokenizer("gpt2"), max_length, stride)
    return DataLoader(
        TensorDataset(torch.tensor(windows.input_ids), torch.tensor(windows.target_ids)),
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=num_workers,
    )


def calc_loss_batch(
    input_batch: Integer[Tensor, "B T"],
    target_batch: Integer[Tensor, "B T"] | Integer[Tensor, "B"],
    model: nn.Module,
    device: torch.device | str,
) -> Float[Tensor, ""]:
    """The mean cross-entropy of one batch, in nats.

    target_batch   (B, T): the next tokens; or, as in chapter 6, (B): the classes of the texts, whose scores are read at
                   the last of the T tokens, be it padding or not
    """
    logits, targets = model(input_batch.to(device)), target_batch.to(device)
    if targets.ndim == 1:
        return F.cross_entropy(logits[:, -1], targets)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def calc_loss_loader(
    data_loader: DataLoader, model: nn.Module, device: torch.device | str, num_batches: int | None = None
) -> float:
    """The mean of `calc_loss_batch` over the first `num_batches` batches, or over all; NaN if there is no batch."""
    n_batches = len(data_loader) if num_batches is None else min(num_batches, len(data_loader))
    if n_batches == 0:
        return float("nan")
    batches = islice(data_loader, n_batches)
    losses = [calc_loss_batch(inputs, targets, model, device).item() for inputs, targets in batches]
    return sum(losses) / n_batches


def evaluate_model(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    device: torch.device | str,
    eval_iter: int,
) -> tuple[float, float]:
    """The training and the validation loss, each over `eval_iter` batches, in nats, without dropout.

    The model is in training mode afterwards.
    """
    model.eval()
    with torch.no_grad():
        train_loss = calc_loss_loader(train_loader, model, device, num_batches=eval_iter)
        val_loss = calc_loss_loader(val_loader, model, device, num_batches=eval_iter)
    model.train()
    return train_loss, val_loss


def sample_text(
    model: GPTModel, tokenizer: Any, device: torch.device | str, start_context: str, max_new_tokens: int = 50
) -> str:
    """`start_context` and `max_new_tokens` more tokens, each the likeliest after those before it, on one line.

    The model is in training mode afterwards.
    """
    model.eval()
    token_ids = generate_text_simple(
        model,
        text_to_token_ids(start_context, tokenizer).to(device),
        max_new_tokens=max_new_tokens,
        context_size=model.pos_emb.num_embeddings,
    )
    model.train()
    return token_ids_to_text(token_ids, tokenizer).replace("\n", " ")


def generate_and_print_sample(model: GPTModel, tokenizer: Any, device: torch.device | str, start_context: str) -> None:
    """Print `start_context` and 50 more tokens, each the likeliest after those before it, on one line.

    The model is in training mode afterwards.
    """
    print(sample_text(model, tokenizer, device, start_context))


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    input_batch: Integer[Tensor, "B T"],
    target_batch: Integer[Tensor, "B T"] | Integer[Tensor, "B"],
    device: torch.device | str,
    *,
    max_norm: float | None = None,
) -> Float[Tensor, ""]:
    """Take one step of the optimizer on a batch, in training mode; returns the loss, in nats, as `calc_loss_batch`.

    max_norm   clip the gradients to this norm; None: they are not clipped
    """
    model.train()
    optimizer.zero_grad()
    loss = calc_loss_batch(input_batch, target_batch, model, device)
    loss.backward()
    if max_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.detach()


def train_model_simple(
    model: GPTModel,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer: Any,
) -> tuple[list[float], list[float], list[int]]:
    """Train for `num_epochs` epochs. Print a line of losses every `eval_freq` steps, and a sample after each epoch.

    This is the book's listing, for those who follow it. The loop of the command `numpygpt train` is
    `numpygpt.training.loop`.

    eval_iter   how many batches an evaluation takes, of training and of validation

    Returns train_losses and val_losses, in nats a token, and track_tokens_seen, with an entry for each line of losses.
    """
    tracked = run_epochs(
        train_loader,
        num_epochs,
        eval_freq,
        take_step=lambda _, inputs, targets: training_step(model, optimizer, inputs, targets, device),
        evaluate=lambda: evaluate_model(model, train_loader, val_loader, device, eval_iter),
        end_epoch=lambda: generate_and_print_sample(model, tokenizer, device, start_context),
        size=torch.numel,
    )
    return tracked.train_losses, tracked.val_losses, tracked.track_seen


def train_model(
    model: GPTModel,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    n_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer: Any,
    warmup_steps: int,
    initial_lr: float = 3e-05,
    min_lr: float = 1e-6,
) -> tuple[list[float], list[float], list[int], list[float]]:
    """The training of appendix D: with a warm-up and a cosine of the learning rate, and with clipping from then on.

    The arguments and the result are those of `numpygpt.train_model`, which says when the gradients are clipped. Every
    group of the optimizer gets the same rate, and the highest is that of its first group.
    """
    peak_lr = optimizer.param_groups[0]["lr"]
    rate_of = book_rate(peak_lr, len(train_loader) * n_epochs, warmup_steps, initial_lr, min_lr)
    track_lrs: list[float] = []

    def take_step(global_step: int, inputs: Tensor, targets: Tensor) -> None:
        track_lrs.append(rate_of(global_step))
        for group in optimizer.param_groups:
            group["lr"] = track_lrs[-1]
        max_norm = MAX_NORM if clips(global_step, warmup_steps) else None
        training_step(model, optimizer, inputs, targets, device, max_norm=max_norm)

    tracked = run_epochs(
        train_loader,
        n_epochs,
        eval_freq,
        take_step=take_step,
        evaluate=lambda: evaluate_model(model, train_loader, val_loader, device, eval_iter),
        end_epoch=lambda: generate_and_print_sample(model, tokenizer, device, start_context),
        size=torch.numel,
        step="Iter",
    )
    return tracked.train_losses, tracked.val_losses, tracked.track_seen, track_lrs


def find_highest_gradient(model: nn.Module) -> Float[Tensor, ""] | None:
    """The largest value in the gradients of the model's parameters; None if there are none.

    It is not the largest absolute value.
    """
    highest = [parameter.grad.max() for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack(highest).max() if highest else None
