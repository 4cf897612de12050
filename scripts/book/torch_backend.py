"""The backend of the training loop that computes in PyTorch on the CPU, as the book's listings do.

It draws what NumPy's backend draws, and writes the same sections. So each of the two can continue a run that the other
has begun.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

import torchgpt
from numpygpt.data.windows import TokenWindows
from numpygpt.errors import InputError
from numpygpt.sections import SavedSections, Section, named_in_errors, value_of
from numpygpt.shapes import Array
from numpygpt.training.backend import Task
from numpygpt.training.step import StepTaken
from numpygpt.training.team import OneProcess
from torchgpt.model import GPTModel
from torchgpt.training import sample_text

DEVICE = "cpu"
MOMENTS = ("exp_avg", "exp_avg_sq")


class TorchBackend:
    """A `Backend`: the twin of `numpygpt.training.numpy_backend.NumpyBackend`, on PyTorch's default generator.

    It takes the steps of the book, which have neither accumulation nor clipping.
    """

    program = "numpygpt"
    team = OneProcess()
    state_is_a_copy = False

    def __init__(self, task: Task) -> None:
        self.options, self.config, self.tokenizer = task.options, task.config, task.tokenizer
        if self.options.accumulate != 1 or self.options.clip:
            raise InputError(
                f"accumulate is {self.options.accumulate} and clip is {self.options.clip}, which the book's training "
                f"in PyTorch does not know; expected 1 and 0"
            )
        self.train_loader, self.val_loader = (
            self._loader(token_ids, training=training)
            for token_ids, training in ((task.corpus.training, True), (task.corpus.validation, False))
        )

    @classmethod
    def start(cls, task: Task) -> "TorchBackend":
        backend = cls(task)
        torch.manual_seed(task.options.seed)
        backend._make_model()
        backend._begin_epoch()
        return backend

    @classmethod
    def load(cls, task: Task, saved: SavedSections) -> "TorchBackend":
        backend = cls(task)
        backend._make_model()
        with named_in_errors(saved):
            backend._load_model(saved)
            backend._load_optimizer(saved)
            backend._load_position(saved)
            torch.set_rng_state(torch.from_numpy(saved.arrays("random")["generator"]))
        return backend

    def batches_in_an_epoch(self) -> int:
        return len(self.train_loader)

    def _loader(self, token_ids: Array, *, training: bool) -> DataLoader:
        length = self.config.context_length
        windows = TokenWindows(token_ids, length, stride=length)
        dataset = TensorDataset(torch.tensor(windows.input_ids), torch.tensor(windows.target_ids))
        return DataLoader(dataset, self.options.batch_size, shuffle=training, drop_last=training)

    def step(self, learning_rate: float) -> StepTaken:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        inputs, targets = self._next_batch()
        loss = torchgpt.calc_loss_batch(inputs, targets, self.model, DEVICE)
        if not math.isfinite(loss.item()):
            raise InputError(f"the loss is {loss.item()}; the weights are those before that step")
        loss.backward()
        self.optimizer.step()
        named = self.model.named_parameters()
        gradients = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
        return StepTaken(loss.item(), {name: float(torch.linalg.norm(grad)) for name, grad in gradients.items()})

    def evaluate(self) -> tuple[float, float]:
        return torchgpt.evaluate_model(
            self.model, self.train_loader, self.val_loader, DEVICE, self.options.eval_batches
        )

    @torch.no_grad()
    def probe(self) -> float:
        inputs, targets = self.val_loader.dataset[: self.options.batch_size]
        loss = torchgpt.calc_loss_batch(inputs, targets, self.model.eval(), DEVICE).item()
        self.model.train()
        return loss

    def sample(self, prompt: str) -> str:
        return sample_text(self.model, self.tokenizer, DEVICE, prompt)

    def state(self) -> dict[str, Section]:
        weights = {name: parameter.detach().numpy() for name, parameter in self.model.named_parameters()}
        return {
            "model": Section({"config": self.config.to_dict(), "tokenizer": self.options.tokenizer}, weights),
            "optimizer": self._optimizer_section(),
            "random": Section({}, {"generator": torch.get_rng_state().numpy()}),
            "data": Section({"position": {"order_seed": self._order_seed, "batches_done": self._batches_done}}, {}),
        }

    # The model and its optimizer

    def _make_model(self) -> None:
        self.model = GPTModel(self.config).to(getattr(torch, self.options.dtype))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.options.lr, weight_decay=self.options.weight_decay
        )

    def _load_model(self, saved: SavedSections) -> None:
        weights = {name: torch.from_numpy(array) for name, array in saved.arrays("model").items()}
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(" ".join(str(error).split())) from error

    def _optimizer_section(self) -> Section:
        """What NumPy's `AdamW.section` gives. PyTorch makes the moments in the first step; before it they are 0."""
        (group,) = self.optimizer.param_groups
        states = {name: self.optimizer.state.get(parameter, {}) for name, parameter in self.model.named_parameters()}
        values = {
            "step": max(int(state.get("step", 0)) for state in states.values()),
            **{name: group[name] for name in ("lr", "eps", "weight_decay")},
            "betas": list(group["betas"]),
            "groups": [],
        }
        moments = {
            f"{kind}.{name}": states[name].get(kind, torch.zeros_like(parameter)).detach().numpy()
            for kind in MOMENTS
            for name, parameter in self.model.named_parameters()
        }
        return Section(values, moments)

    def _load_optimizer(self, saved: SavedSections) -> None:
        step, moments = value_of(saved.values("optimizer"), "step", int), saved.arrays("optimizer")
        for name, parameter in self.model.named_parameters():
            keys = {kind: f"{kind}.{name}" for kind in MOMENTS}
            if any(key not in moments or moments[key].shape != parameter.shape for key in keys.values()):
                raise InputError(f"the optimizer has no moments of {name} {tuple(parameter.shape)}")
            if step:
                found = {kind: torch.from_numpy(moments[key]) for kind, key in keys.items()}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(step)), **found}

    # The batches

    def _begin_epoch(self) -> None:
        self._batches = iter(self.train_loader)
        self._order_seed: int | None = None
        self._batches_done = 0

    def _next_batch(self) -> list[Tensor]:
        if self._batches_done == len(self.train_loader):
            self._begin_epoch()
        if self._order_seed is None:  # the number that the loader is about to draw, as the seed of the epoch's order
            with torch.random.fork_rng(devices=[]):
                self._order_seed = int(torch.empty((), dtype=torch.int64).random_())
        self._batches_done += 1
        return next(self._batches)

    def _load_position(self, saved: SavedSections) -> None:
        """Go on within an epoch. A DataLoader can only begin an epoch, so a new one has the windows that are left."""
        position = value_of(saved.values("data"), "position", dict)
        self._begin_epoch()
        self._order_seed = value_of(position, "order_seed", int, type(None))
        self._batches_done = value_of(position, "batches_done", int)
        if self._order_seed is not None:
            generator = torch.Generator().manual_seed(self._order_seed)
            windows: Any = self.train_loader.dataset
            order = torch.randperm(len(windows), generator=generator).tolist()
            left = Subset(windows, order[self._batches_done * self.options.batch_size :])
            self._batches = iter(DataLoader(left, self.options.batch_size, drop_last=True))
