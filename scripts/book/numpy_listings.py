"""The book's listings in NumPy alone: what `reproduce_book.py --backend numpy` runs."""

import statistics
import time

import numpy as np

import numpygpt
from numpygpt.data.loader import DataLoader
from numpygpt.data.tokenizer import Encoding
from numpygpt.decoding.sampling import keep_top_k
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.parallel import use_own_threads
from numpygpt.process import keep_freed_memory
from numpygpt.shapes import Array
from numpygpt.training.numpy_backend import NumpyBackend


class Listings:
    """The steps of chapters 4 and 5 whose calls differ between numpygpt and torchgpt.

    `book.torch_listings.Listings` is its twin.

    package    the package with the functions whose names and calls do not differ
    training   what makes the backend of the training loop
    """

    package = numpygpt
    training = NumpyBackend

    def __init__(self, tokenizer: Encoding) -> None:
        keep_freed_memory()
        use_own_threads()
        self.tokenizer = tokenizer
        self.rng = numpygpt.TorchGenerator(0)  # it takes the place of PyTorch's default generator

    def manual_seed(self, seed: int) -> None:
        """From here on, all draws are those that follow `torch.manual_seed(seed)`."""
        self.rng.set_state(numpygpt.TorchGenerator(seed).get_state())

    def new_model(self, config: GPTConfig) -> GPTModel:
        """A model with fresh weights."""
        return GPTModel(config, seed=self.rng)

    def trained(self, backend: NumpyBackend) -> GPTModel:
        """The model that the backend trains."""
        return backend.model

    def num_parameters(self, model: GPTModel) -> int:
        """How many values are trained."""
        return model.num_parameters()

    def array(self, numbers: list) -> Array:
        """The numbers as an array: lists of integers as int64, others as float32."""
        return np.array(numbers, np.int64 if isinstance(numbers[0], list) else np.float32)

    def probabilities(self, model: GPTModel, inputs: list[list[int]]) -> Array:
        """The probabilities of each next token (B, T, V)."""
        return numpygpt.softmax_with_temperature(model(self.array(inputs)), 1)

    def batch_loss(self, model: GPTModel, inputs: list[list[int]], targets: list[list[int]]) -> float:
        """The mean cross-entropy of a batch, in nats a token."""
        return numpygpt.calc_loss_batch(self.array(inputs), self.array(targets), model)

    def loader(self, text: str, batch_size: int, length: int, *, training: bool) -> DataLoader:
        """The book's loader for a part of the text. For training it shuffles, and leaves out a last smaller batch."""
        return numpygpt.create_dataloader_v1(
            text, batch_size, length, length, training, training, tokenizer=self.tokenizer, rng=self.rng
        )

    def loader_loss(self, loader: DataLoader, model: GPTModel) -> float:
        """The mean loss of the loader's batches, in nats a token."""
        return numpygpt.calc_loss_loader(loader, model)

    def write(
        self, model: GPTModel, prompt: str, max_new_tokens: int, temperature: float = 0.0, top_k: int | None = None
    ) -> str:
        """The prompt and the text that the model generates after it."""
        token_ids = numpygpt.generate(
            model,
            numpygpt.text_to_token_ids(prompt, self.tokenizer),
            max_new_tokens,
            model.config.context_length,
            temperature,
            top_k,
            rng=self.rng,
        )
        return numpygpt.token_ids_to_text(token_ids, self.tokenizer)

    def top_k_probabilities(self, logits: list[float], k: int) -> Array:
        """The softmax over the k largest logits, and 0 for the others."""
        return numpygpt.softmax_with_temperature(keep_top_k(self.array(logits)[np.newaxis], k), 1)[0]

    def mask_seconds(self, model: GPTModel, batch_size: int, length: int) -> float | None:
        """The seconds that it takes to draw the dropout masks of one training step: the median of three times."""
        rng, seconds = numpygpt.TorchGenerator(0), []
        for _ in range(3):
            began = time.perf_counter()
            model.draw_dropout_masks(rng, batch_size, length)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)
