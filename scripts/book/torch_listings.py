"""The book's listings in PyTorch, which `reproduce_book.py --backend torch` runs for comparison with NumPy's run."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import torchgpt
from numpygpt.data.tokenizer import Encoding
from numpygpt.model.config import GPTConfig
from numpygpt.training.team import OneProcess
from torchgpt.engine.backend import Maker, TorchBackend
from torchgpt.engine.settings import Settings
from torchgpt.model import GPTModel

DEVICE = "cpu"


class Listings:
    """The twin of `book.numpy_listings.Listings`, which describes the methods and attributes."""

    package = torchgpt
    training = Maker(Settings(device=DEVICE, kernels="book"), OneProcess(), torch.device(DEVICE))

    def __init__(self, tokenizer: Encoding) -> None:
        self.tokenizer = tokenizer

    def manual_seed(self, seed: int) -> None:
        """Seed PyTorch's default generator."""
        torch.manual_seed(seed)

    def new_model(self, config: GPTConfig) -> GPTModel:
        """A model with fresh weights, for evaluation."""
        return GPTModel(config).eval()

    def trained(self, backend: TorchBackend) -> GPTModel:
        """The model that the backend trains, with a copy of its weights."""
        with torch.random.fork_rng(devices=[]):  # the weights that it draws are replaced at once
            model = GPTModel(backend.config)
        model.load_state_dict({name: whole.clone() for name, whole in backend.model.each_whole()})
        return model.eval()

    def num_parameters(self, model: GPTModel) -> int:
        """How many values are trained."""
        return sum(parameter.numel() for parameter in model.parameters())

    def array(self, numbers: list) -> Tensor:
        """The numbers as a tensor: lists of integers as int64, others as float32."""
        return torch.tensor(numbers)

    @torch.no_grad()
    def probabilities(self, model: GPTModel, inputs: list[list[int]]) -> np.ndarray:
        """The probabilities of each next token (B, T, V)."""
        return torchgpt.softmax_with_temperature(model.eval()(self.array(inputs)), 1).numpy()

    @torch.no_grad()
    def batch_loss(self, model: GPTModel, inputs: list[list[int]], targets: list[list[int]]) -> float:
        """The mean cross-entropy of a batch, in nats a token."""
        return torchgpt.calc_loss_batch(self.array(inputs), self.array(targets), model.eval(), DEVICE).item()

    def loader(self, text: str, batch_size: int, length: int, *, training: bool) -> DataLoader:
        """The book's loader for a part of the text."""
        return torchgpt.create_dataloader_v1(
            text, batch_size, length, length, training, training, tokenizer=self.tokenizer
        )

    @torch.no_grad()
    def loader_loss(self, loader: DataLoader, model: GPTModel) -> float:
        """The mean loss of the loader's batches, in nats a token."""
        return torchgpt.calc_loss_loader(loader, model.eval(), DEVICE)

    def write(
        self, model: GPTModel, prompt: str, max_new_tokens: int, temperature: float = 0.0, top_k: int | None = None
    ) -> str:
        """The prompt and the text that the model generates after it."""
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
        """The softmax over the k largest logits, and 0 for the others."""
        all_logits = self.array(logits)
        smallest_kept = torch.topk(all_logits, k).values[-1]
        return torch.softmax(all_logits.masked_fill(all_logits < smallest_kept, -torch.inf), dim=-1).numpy()

    def mask_seconds(self, model: GPTModel, batch_size: int, length: int) -> float | None:
        """None: PyTorch draws its masks within the forward, so the time is not known."""
        return None
