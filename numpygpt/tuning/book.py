"""The book's classifier (chapter 6): its training, its accuracy, and what it says of one text.

The model has a head of two scores (`numpygpt.adapt.class_head`). The book pads each text to one length, and reads the
scores at the last position, so that the classifier learns to read over the padding; `numpygpt finetune --objective
classify` reads them at the last real token. The losses of a batch and of a loader are those of chapter 5
(`numpygpt.training.book`), which know a class by the shape of the targets.
"""

import math
from itertools import islice

import numpy as np

from numpygpt.data.batching import LabelBatch
from numpygpt.data.book_instructions import PAD_TOKEN_ID
from numpygpt.data.loader import DataLoader
from numpygpt.data.tokenizer import Encoding
from numpygpt.model.gpt import GPTModel
from numpygpt.random.masks import RandomSource
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array, Integer
from numpygpt.training.book import evaluate_model, run_epochs
from numpygpt.training.optimizer import Optimizer
from numpygpt.training.step import training_step
from numpygpt.tuning.classes import Classes, last_scores


def calc_accuracy_loader(data_loader: DataLoader, model: GPTModel, num_batches: int | None = None) -> float:
    """The share of the texts in the loader's first `num_batches` batches, or in all, whose class the model finds."""
    n_correct, n_texts = 0, 0
    for inputs, labels in islice(data_loader, num_batches):
        found = last_scores(model, inputs, _whole(inputs)).argmax(axis=-1)
        n_correct += int(np.count_nonzero(found == labels))
        n_texts += len(labels)
    return n_correct / n_texts if n_texts else math.nan


def train_classifier_simple(
    model: GPTModel,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: Optimizer,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int,
    *,
    rng: RandomSource | None = None,
) -> tuple[list[float], list[float], list[float], list[float], int]:
    """Train for `num_epochs` epochs. Print a line of losses every `eval_freq` steps, and of accuracies after an epoch.

    The arguments are those of `numpygpt.train_model_simple`. The loaders give texts (B, T) and labels (B).

    Returns train_losses and val_losses, in nats a text, with an entry for each line of losses; train_accs and val_accs,
    with one for each epoch; and examples_seen, how many texts the whole training has seen.
    """
    rng = TorchGenerator() if rng is None else rng
    train_accs: list[float] = []
    val_accs: list[float] = []

    def end_epoch() -> None:
        train_accs.append(calc_accuracy_loader(train_loader, model, eval_iter))
        val_accs.append(calc_accuracy_loader(val_loader, model, eval_iter))
        print(accuracy_line(train_accs[-1], val_accs[-1]))

    def take_step(_: int, inputs: Array, labels: Array) -> None:
        training_step(model, optimizer, [LabelBatch(inputs, _whole(inputs), labels)], goal=Classes(), rng=rng)

    tracked = run_epochs(
        train_loader,
        num_epochs,
        eval_freq,
        take_step=take_step,
        evaluate=lambda: evaluate_model(model, train_loader, val_loader, eval_iter),
        end_epoch=end_epoch,
        size=len,
    )
    return tracked.train_losses, tracked.val_losses, train_accs, val_accs, tracked.seen


def accuracy_line(train_accuracy: float, val_accuracy: float) -> str:
    """The book's line after an epoch."""
    return f"Training accuracy: {train_accuracy * 100:.2f}% | Validation accuracy: {val_accuracy * 100:.2f}%"


def classify_review(
    text: str,
    model: GPTModel,
    tokenizer: Encoding,
    max_length: int | None = None,
    pad_token_id: int = PAD_TOKEN_ID,
) -> str:
    """"spam" if the model finds class 1 in the text, and "not spam" otherwise.

    max_length   the text is cut off or padded to it, as the texts of the training were; None: it stays as it is. No
                 text is longer than the context
    """
    inputs = review_ids(text, tokenizer, model.config.context_length, max_length, pad_token_id)
    return verdict(int(last_scores(model, inputs, _whole(inputs)).argmax()))


def review_ids(
    text: str, tokenizer: Encoding, context_length: int, max_length: int | None, pad_token_id: int
) -> Integer[Array, "1 T"]:
    """The token ids that `classify_review` reads, as a batch of one, int64."""
    token_ids = tokenizer.encode_ordinary(text)
    length = min(context_length, len(token_ids) if max_length is None else max_length)
    padding = [pad_token_id] * (length - len(token_ids))
    return np.array([[*token_ids[:length], *padding]], np.int64)


def verdict(label: int) -> str:
    """What `classify_review` says of a class."""
    return "spam" if label == 1 else "not spam"


def _whole(inputs: Integer[Array, "B T"]) -> Integer[Array, "B"]:
    """The lengths of texts of which the padding is a part: T each."""
    return np.full(len(inputs), inputs.shape[1])
