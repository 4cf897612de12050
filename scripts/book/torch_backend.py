"""The book's listings in PyTorch: what `reproduce_book.py --backend torch` runs, to compare NumPy's run with."""

from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import torchgpt
from numpygpt.data.texts import split_text
from numpygpt.data.tokenizer import Encoding, get_tokenizer
from numpygpt.errors import InputError
from numpygpt.files import replacing
from numpygpt.model.config import GPTConfig
from numpygpt.training.run import TRAIN_SHARE, Evaluation, Options
from torchgpt.model import GPTModel
from torchgpt.training import sample_text, training_step

CHECKPOINT = "checkpoint.pt"
DEVICE = "cpu"


class TorchRun:
    """The twin of `numpygpt.training.run.TrainingRun` on PyTorch's default generator.

    Of the options it knows those of the book's run: no accumulation, schedule or clipping.
    """

    def __init__(self, options: Options, config: GPTConfig, directory: Path) -> None:
        self.options, self.config, self.directory = options, config, directory
        self.tokenizer = get_tokenizer(options.tokenizer, options.vocab)
        self.train_loader, self.val_loader = (
            torchgpt.create_dataloader_v1(
                part,
                options.batch_size,
                config.context_length,
                stride=config.context_length,
                shuffle=training,
                drop_last=training,
                tokenizer=self.tokenizer,
            )
            for part, training in zip(split_text(options.read_text(), TRAIN_SHARE), (True, False), strict=True)
        )
        self.model = GPTModel(config).to(getattr(torch, options.dtype))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
        self.step = self.tokens_seen = 0
        self.history: list[Evaluation] = []

    @classmethod
    def start(cls, options: Options, config: GPTConfig, directory: Path, *, overwrite: bool = False) -> "TorchRun":
        """A new run. InputError where the directory already holds a checkpoint, unless it may be overwritten."""
        if (directory / CHECKPOINT).exists() and not overwrite:
            raise InputError(f"{directory} already holds a checkpoint; replace it, or choose another folder")
        torch.manual_seed(options.seed)
        return cls(options, config, directory)

    @classmethod
    def resume(cls, directory: Path, **changes: Any) -> "TorchRun":
        """The run whose checkpoint is in `directory`, with `changes` of its options."""
        saved = _load(directory / CHECKPOINT)
        options = Options(**{**saved["options"], "text": tuple(saved["options"]["text"]), **changes})
        if options.steps < saved["step"]:
            raise InputError(
                f"steps is {options.steps}, but the run in {directory} has done {saved['step']}; "
                f"expected at least as many"
            )
        run = cls(options, GPTConfig.of(saved["config"]), directory)
        run.model.load_state_dict(saved["model"])
        run.optimizer.load_state_dict(saved["optimizer"])
        run.step, run.tokens_seen = saved["step"], saved["tokens_seen"]
        run.history = [Evaluation(**entry) for entry in saved["history"]]
        run._random_state_of_epoch = saved["random_state_of_epoch"]
        batches_done = run.step % len(run.train_loader)
        if batches_done:  # a DataLoader starts at the front: draw the epoch's order again and pass over its batches
            torch.set_rng_state(run._random_state_of_epoch)
            run._begin_epoch()
            for _ in range(batches_done):
                next(run._batches)
        torch.set_rng_state(saved["random_state"])
        return run

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step trains on."""
        return self.options.batch_size * self.config.context_length

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.options.steps

    def train_step(self) -> float:
        """One optimizer step; returns its loss."""
        if self.step % len(self.train_loader) == 0:
            self._begin_epoch()
        inputs, targets = next(self._batches)
        loss = training_step(self.model, self.optimizer, inputs, targets, DEVICE)
        self.step += 1
        self.tokens_seen += self.tokens_per_step
        return loss.item()

    def _begin_epoch(self) -> None:
        self._random_state_of_epoch = torch.get_rng_state()
        self._batches = iter(self.train_loader)

    def evaluate(self) -> Evaluation:
        """Measure both losses and add them to the history."""
        losses = torchgpt.evaluate_model(
            self.model, self.train_loader, self.val_loader, DEVICE, self.options.eval_batches
        )
        epochs = self.step / len(self.train_loader)
        self.history.append(Evaluation(self.step, epochs, self.tokens_seen, *losses))
        return self.history[-1]

    def sample(self) -> str:
        """The likeliest continuation of the options' prompt."""
        return sample_text(self.model, self.tokenizer, DEVICE, self.options.sample_prompt)

    def save(self) -> Path:
        """Write the checkpoint in place of the last one; returns its path."""
        path = self.directory / CHECKPOINT
        contents = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random_state": torch.get_rng_state(),
            "random_state_of_epoch": self._random_state_of_epoch,
            "options": asdict(self.options),
            "config": self.config.to_dict(),
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "history": [asdict(evaluation) for evaluation in self.history],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            torch.save(contents, unfinished)
        return path


def _load(path: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the checkpoint {path} cannot be read ({reason}); start anew with --overwrite") from error
    return saved


class Backend:
    """The twin of `book.numpy_backend.Backend`; methods and attributes as described there."""

    package = torchgpt
    Run = TorchRun
    checkpoint = CHECKPOINT

    def __init__(self, tokenizer: Encoding) -> None:
        self.tokenizer = tokenizer

    def manual_seed(self, seed: int) -> None:
        """Seed PyTorch's default generator."""
        torch.manual_seed(seed)

    def new_model(self, config: GPTConfig) -> GPTModel:
        """A model with fresh weights, for evaluation."""
        return GPTModel(config).eval()

    def num_parameters(self, model: GPTModel) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in model.parameters())

    def array(self, numbers: list) -> Tensor:
        """Integers as int64, others as float32."""
        return torch.tensor(numbers)

    @torch.no_grad()
    def probabilities(self, model: GPTModel, inputs: list[list[int]]) -> np.ndarray:
        """Of each next token (B, T, V)."""
        return torchgpt.softmax_with_temperature(model.eval()(self.array(inputs)), 1).numpy()

    @torch.no_grad()
    def batch_loss(self, model: GPTModel, inputs: list[list[int]], targets: list[list[int]]) -> float:
        """The cross-entropy in nats a token."""
        return torchgpt.calc_loss_batch(self.array(inputs), self.array(targets), model.eval(), DEVICE).item()

    def loader(self, text: str, batch_size: int, length: int, *, training: bool) -> DataLoader:
        """The book's loader of a part of the text."""
        return torchgpt.create_dataloader_v1(
            text, batch_size, length, length, training, training, tokenizer=self.tokenizer
        )

    @torch.no_grad()
    def loader_loss(self, loader: DataLoader, model: GPTModel) -> float:
        """The loss over all its batches."""
        return torchgpt.calc_loss_loader(loader, model.eval(), DEVICE)

    def write(
        self, model: GPTModel, prompt: str, max_new_tokens: int, temperature: float = 0.0, top_k: int | None = None
    ) -> str:
        """The prompt and what the model says next."""
        token_ids = torchgpt.generate(
            model.eval(),
            torchgpt.text_to_token_ids(prompt, self.tokenizer),
            max_new_tokens,
            model.config.context_length,
            temperature,
            top_k,
        )
        return torchgpt.token_ids_to_text(token_ids, self.tokenizer)

    def top_k_probabilities(self, logits: list[float], k: int) -> np.ndarray:
        """The softmax of the k largest logits; 0 for the rest."""
        all_logits = self.array(logits)
        smallest_kept = torch.topk(all_logits, k).values[-1]
        return torch.softmax(all_logits.masked_fill(all_logits < smallest_kept, -torch.inf), dim=-1).numpy()

    def mask_seconds(self, model: GPTModel, batch_size: int, length: int) -> float | None:
        """Not told: PyTorch draws its masks amid the forward."""
        return None
