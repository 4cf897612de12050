"""What scripts/gpu_benchmark.py times: training steps as people write them, and torchgpt's.

Each function prepares a model on the device and returns a function that takes one step and returns its loss. All of
them train the same model from the same weights: gradients of the mean loss of a batch, without dropout, and AdamW with
float32 parameters.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

import torchgpt
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import parameter_shapes
from numpygpt.training import backend as training_backend
from numpygpt.training.corpus import Corpus
from numpygpt.training.options import Options
from numpygpt.training.team import OneProcess
from torchgpt.engine.backend import TorchBackend
from torchgpt.engine.settings import Settings
from torchgpt.training import training_step

LEARNING_RATE = 1e-4
#: So many batches of torchgpt are an epoch.
EPOCH = 8
WEIGHT_DECAY = 0.1
LARGEST_NORM = 1.0
#: nanoGPT rounds the vocabulary up to a multiple of this, which suits tensor cores.
PADDING = 64

Weights = Mapping[str, Tensor]
Step = Callable[[], Tensor]


class Task(NamedTuple):
    """What a step computes: batch_size x tokens ids, as many as the model's context is long, and on which device."""

    config: GPTConfig
    batch_size: int
    tokens: int
    device: torch.device

    def weights(self) -> Weights:
        """Float32 weights by numpygpt's names, on the device: the same for every contender.

        Matrices, embeddings and biases are N(0, 0.02²), the scales of norms are 1.
        """
        generator = torch.Generator(self.device).manual_seed(0)
        shapes = parameter_shapes(self.config)
        weights = {name: torch.ones(shape, device=self.device) for name, shape in shapes.items()}
        for name, tensor in weights.items():
            if not name.endswith(".scale"):
                tensor.normal_(0.0, 0.02, generator=generator)
        return weights

    def batch(self) -> tuple[Integer[Tensor, "B T"], Integer[Tensor, "B T"]]:
        """Inputs and targets, in memory from which a GPU can take them while it computes."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.config.vocab_size, (self.batch_size, self.tokens + 1), generator=generator)
        inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        if self.device.type == "cuda":
            inputs, targets = inputs.pin_memory(), targets.pin_memory()
        return inputs, targets

    def bfloat16(self) -> torch.autocast:
        """A context in which products are in bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16)


# The book's loop


def book(task: Task) -> Step:
    """The book's model and its loop's step, in float32: attention written out, AdamW with PyTorch's defaults."""
    with task.device:
        model = torchgpt.GPTModel(task.config)
    model.load_state_dict(task.weights())
    optimizer, batch = _adamw(model), task.batch()
    return lambda: training_step(model, optimizer, *batch, task.device)


# A GPT of PyTorch's parts


class PlainBlock(nn.Module):
    """A block of PyTorch's own norms, GELU and attention, with queries, keys and values from one matrix."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        D, bias = config.emb_dim, config.bias
        self.n_heads = config.n_heads
        self.norm1, self.norm2 = (nn.LayerNorm(D, config.norm_eps, bias=bias) for _ in range(2))
        self.qkv = nn.Linear(D, 3 * D, bias=config.qkv_bias)
        self.out = nn.Linear(D, D, bias=bias)
        self.widen = nn.Linear(D, 4 * D, bias=bias)
        self.narrow = nn.Linear(4 * D, D, bias=bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        queries, keys, values = (
            part.unflatten(2, (self.n_heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=2)
        )
        context = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.out(context.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """A GPT as it is usually written in PyTorch; its output is the mean loss, of the logits of all positions at once.

    padding   the vocabulary is rounded up to a multiple of it; the added rows are zero and learn like the others
    """

    def __init__(self, config: GPTConfig, padding: int = 1) -> None:
        super().__init__()
        V = -(-config.vocab_size // padding) * padding
        self.tokens = nn.Embedding(V, config.emb_dim)
        self.positions = nn.Embedding(config.context_length, config.emb_dim)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.emb_dim, config.norm_eps, bias=config.bias)
        self.head = nn.Linear(config.emb_dim, V, bias=False)
        if config.tie_weights:
            self.head.weight = self.tokens.weight

    def forward(self, inputs: Integer[Tensor, "B T"], targets: Integer[Tensor, "B T"]) -> Float[Tensor, ""]:
        x = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1], device=inputs.device))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def fill(self, weights: Weights) -> None:
        """Copy weights that have numpygpt's names."""
        for name, own in self.named_parameters():
            given = torch.cat([weights[source] for source in _sources(name)])
            own.zero_()
            own[: len(given)] = given


#: Numpygpt's names of the parts of a PlainBlock.
PARTS = {
    "qkv": ("att.W_query", "att.W_key", "att.W_value"),
    "out": ("att.out_proj",),
    "widen": ("ff.layers.0",),
    "narrow": ("ff.layers.2",),
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    "tokens": ("tok_emb",),
    "positions": ("pos_emb",),
    "norm": ("final_norm",),
    "head": ("out_head",),
}


def _sources(name: str) -> list[str]:
    """Numpygpt's names of the parameters that lie below each other in PlainGPT's parameter of this name."""
    *path, part, kind = name.split(".")
    block = f"trf_blocks.{path[1]}." if path else ""
    if part.startswith("norm"):
        kind = {"weight": "scale", "bias": "shift"}[kind]
    return [f"{block}{source}.{kind}" for source in PARTS[part]]


def plain(task: Task, *, bf16: bool = False, compiled: bool = False, nanogpt: bool = False) -> Step:
    """A step of a PlainGPT.

    bf16       products in bfloat16, by autocast
    compiled   by torch.compile, the whole model at once
    nanogpt    what nanoGPT's train.py adds: a padded vocabulary, TF32 for products that are in float32, fused AdamW
               with its betas, which decays matrices only, and gradients clipped to norm 1
    """
    with task.device:
        model = PlainGPT(task.config, PADDING if nanogpt else 1)
    model.fill(task.weights())
    loss_of = torch.compile(model, dynamic=False) if compiled else model
    optimizer = _nanogpt_adamw(model) if nanogpt else _adamw(model)
    context = task.bfloat16 if bf16 else nullcontext
    batch = task.batch()

    def step() -> Tensor:
        inputs, targets = (ids.to(task.device, non_blocking=True) for ids in batch)
        with context():
            loss: Tensor = loss_of(inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if nanogpt:
            torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
        optimizer.step()
        return loss.detach()

    return step


def _adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def _nanogpt_adamw(model: nn.Module) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)


# Ours


def ours(task: Task) -> Step:
    """A step of `torchgpt train --precision bf16 --attention flash --compile`, with its loading and its clipping.

    It learns other batches than the other contenders: EPOCH of them, again and again.
    """
    options = Options(
        batch_size=task.batch_size, attention="flash", lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, clip=LARGEST_NORM
    )
    settings = Settings(device=task.device.type, precision="bf16", compile=True)
    ids = np.random.default_rng(0).integers(task.config.vocab_size, size=EPOCH * task.batch_size * task.tokens + 1)
    corpus = Corpus(ids, ids, sha256="")
    training = training_backend.Task(options, task.config, get_tokenizer("bytes"), corpus)
    backend = TorchBackend.start(training, settings, OneProcess(), task.device)
    for name, tensor in task.weights().items():
        backend.model.fill(name, tensor)
    return lambda: torch.tensor(backend.step(LEARNING_RATE).loss)


class Contender(NamedTuple):
    """A way to train.

    about       what it is, in a few words
    precision   the format of its products
    prepared    makes its step
    high        whether products that are in float32 may be computed in TF32
    """

    about: str
    precision: str
    prepared: Callable[[Task], Step]
    high: bool = False


OURS = "torchgpt"

CONTENDERS = {
    "book": Contender("the book's model and loop, as they are", "fp32", book),
    "eager-fp32": Contender("PyTorch's own norms, GELU and flash attention", "fp32", plain),
    "eager-bf16": Contender("the same under autocast", "bf16", partial(plain, bf16=True)),
    "compiled": Contender("the same, compiled", "bf16", partial(plain, bf16=True, compiled=True)),
    "nanogpt": Contender(
        "the same with fused AdamW, clipping, and the vocabulary padded to a multiple of 64",
        "bf16",
        partial(plain, bf16=True, compiled=True, nanogpt=True),
        high=True,
    ),
    OURS: Contender("a step of `torchgpt train --precision bf16 --attention flash --compile`", "bf16", ours),
}
