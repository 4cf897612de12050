"""The book's classifier on tensors (chapter 6). `numpygpt.tuning.book` is its twin, which says more of it."""

import math
import os
from itertools import islice
from typing import Any

import torch
from jaxtyping import Integer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from numpygpt.data import book_instructions
from numpygpt.training.book import run_epochs
from numpygpt.tuning.book import accuracy_line, review_ids, verdict
from torchgpt.model import GPTModel
from torchgpt.training import evaluate_model, training_step


class SpamDataset(Dataset):
    """The texts of a CSV file with the columns Label, 0 or 1, and Text: token ids of one length, and labels, int64.

    The arguments and the errors are those of `numpygpt.SpamDataset`, which reads the file.
    """

    def __init__(
        self,
        csv_file: str | os.PathLike[str],
        tokenizer: Any,
        max_length: int | None = None,
        pad_token_id: int = book_instructions.PAD_TOKEN_ID,
    ) -> None:
        read = book_instructions.SpamDataset(csv_file, tokenizer, max_length, pad_token_id)
        self.max_length = read.max_length
        self.encoded_texts, self.labels = torch.from_numpy(read.encoded_texts), torch.from_numpy(read.labels)

    def __getitem__(self, index: int) -> tuple[Integer[Tensor, "T"], Integer[Tensor, ""]]:
        """A text's token ids (max_length,), and its label."""
        return self.encoded_texts[index], self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)


@torch.no_grad()
def calc_accuracy_loader(
    data_loader: DataLoader, model: nn.Module, device: torch.device | str, num_batches: int | None = None
) -> float:
    """The share of the texts in the loader's first `num_batches` batches, or in all, whose class the model finds.

    The model is in evaluation mode afterwards.
    """
    model.eval()
    n_correct, n_texts = 0, 0
    for inputs, labels in islice(data_loader, num_batches):
        found = model(inputs.to(device))[:, -1].argmax(dim=-1)
        n_correct += int((found == labels.to(device)).sum())
        n_texts += len(labels)
    return n_correct / n_texts if n_texts else math.nan


def train_classifier_simple(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int,
) -> tuple[list[float], list[float], list[float], list[float], int]:
    """Train for `num_epochs` epochs. Print a line of losses every `eval_freq` steps, and of accuracies after an epoch.

    Returns what `numpygpt.train_classifier_simple` returns. The model is in evaluation mode afterwards.
    """
    train_accs: list[float] = []
    val_accs: list[float] = []

    def end_epoch() -> None:
        train_accs.append(calc_accuracy_loader(train_loader, model, device, eval_iter))
        val_accs.append(calc_accuracy_loader(val_loader, model, device, eval_iter))
        print(accuracy_line(train_accs[-1], val_accs[-1]))

    tracked = run_epochs(
        train_loader,
        num_epochs,
        eval_freq,
        take_step=lambda _, inputs, labels: training_step(model, optimizer, inputs, labels, device),
        evaluate=lambda: evaluate_model(model, train_loader, val_loader, device, eval_iter),
        end_epoch=end_epoch,
        size=len,
    )
    return tracked.train_losses, tracked.val_losses, train_accs, val_accs, tracked.seen


@torch.no_grad()
def classify_review(
    text: str,
    model: GPTModel,
    tokenizer: Any,
    device: torch.device | str,
    max_length: int | None = None,
    pad_token_id: int = book_instructions.PAD_TOKEN_ID,
) -> str:
    """"spam" if the model finds class 1 in the text, and "not spam" otherwise; as `numpygpt.classify_review`.

    The model is in evaluation mode afterwards.
    """
    model.eval()
    inputs = review_ids(text, tokenizer, model.pos_emb.num_embeddings, max_length, pad_token_id)
    return verdict(int(model(torch.from_numpy(inputs).to(device))[0, -1].argmax()))
