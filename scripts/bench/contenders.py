"""What is timed: each function prepares a model and returns the run to be timed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from numpygpt import PRESETS, AdamW, GPTConfig, GPTModel, generate
from numpygpt.adapt import quantize
from numpygpt.adapt.adaptation import Adaptation
from numpygpt.errors import InputError
from numpygpt.model.config import DEFAULT_CONFIG
from numpygpt.shapes import Array

#: From the model of `make demo` up, and those that have a name.
MODELS = {
    "demo": DEFAULT_CONFIG,
    "10M": replace(DEFAULT_CONFIG, vocab_size=8192, context_length=1024, emb_dim=256, n_heads=4, n_layers=6),
    "50M": replace(DEFAULT_CONFIG, vocab_size=16384, context_length=1024, emb_dim=512, n_heads=8, n_layers=10),
    **PRESETS,
}
OURS = "numpygpt"
#: The adapter that is timed, on every projection of the blocks.
LORA = "r=8,alpha=16,targets=all-linear"
PROMPT_TOKENS, NEW_TOKENS = 32, 128
DECODED_TOKENS = PROMPT_TOKENS + NEW_TOKENS


@dataclass(frozen=True)
class Task:
    """What is timed: a training step on batch_size x tokens ids, or decoding.

    kind      "step", or "decode": sequences of `tokens` ids, of which the first PROMPT_TOKENS are given
    preset    the name of the model
    threads   how many threads each contender has
    """

    kind: str
    preset: str
    batch_size: int
    tokens: int
    threads: int

    @property
    def config(self) -> GPTConfig:
        """The model without dropout. Its context is as long as the sequences, or, for decoding, at least as long."""
        config = MODELS[self.preset]
        context_length = max(config.context_length, self.tokens) if self.kind == "decode" else self.tokens
        return replace(config, drop_rate=0.0, context_length=context_length)


Run = Callable[[], object]


def faster_attention(tokens: int) -> str:
    return "math" if tokens <= 512 else "flash"


def numpy_step(config: GPTConfig, ids: Array, adaptation: Adaptation | None = None, **options: Any) -> Run:
    """Our training step. Attention is the faster one for the length, unless the options name it."""
    model = GPTModel(config, **{"attention": faster_attention(config.context_length), **options})
    if adaptation is not None:
        model = adaptation.of(model, seed=123)
    optimizer = AdamW(model, lr=1e-4)

    def step() -> None:
        _, grads = model.loss_and_grads(ids[:, :-1], ids[:, 1:])
        optimizer.step(grads)

    return step


def torch_step(
    config: GPTConfig, ids: Array, *, attention: str = "math", fused: bool = False, compiled: bool = False
) -> Run:
    import torch

    import torchgpt

    torch.manual_seed(123)
    model = torchgpt.GPTModel(config, attention=attention)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
    run = torch.compile(model) if compiled else model
    inputs, targets = (torch.from_numpy(np.ascontiguousarray(part)) for part in (ids[:, :-1], ids[:, 1:]))

    def step() -> None:
        optimizer.zero_grad()
        logits = run(inputs)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()

    return step


def numpy_decode(config: GPTConfig, prompt: Array, scheme: str | None = None) -> Run:
    model = GPTModel(config)
    if scheme is not None:
        model = quantize(model, scheme)
    return lambda: generate(model, prompt, NEW_TOKENS, config.context_length)


def book_decode(config: GPTConfig, prompt: Array) -> Run:
    """Decoding by the book's loop, which computes the whole text again for each token."""
    import torch

    import torchgpt

    model, idx = torchgpt.GPTModel(config).eval(), torch.from_numpy(prompt)
    return lambda: torchgpt.generate_text_simple(model, idx, NEW_TOKENS, config.context_length)


def huggingface_decode(config: GPTConfig, prompt: Array) -> Run:
    """Decoding by Hugging Face's `generate`, with its cache."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    hf_config = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.context_length,
        n_embd=config.emb_dim,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        eos_token_id=None,
        bos_token_id=None,
    )
    model, idx = GPT2LMHeadModel(hf_config).eval(), torch.from_numpy(prompt)
    mask = torch.ones_like(idx)
    return lambda: model.generate(
        idx, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True, pad_token_id=0
    )


CONTENDERS: dict[str, dict[str, Callable[..., Run]]] = {
    "step": {
        OURS: numpy_step,
        "eager": torch_step,
        "fused": partial(torch_step, fused=True),
        "sdpa": partial(torch_step, attention="sdpa"),
        "compiled": partial(torch_step, fused=True, compiled=True),
        "numpygpt-math": partial(numpy_step, attention="math"),
        "numpygpt-flash": partial(numpy_step, attention="flash"),
        "numpygpt-recompute": partial(numpy_step, checkpoint_activations=True),
        "numpygpt-lora": partial(numpy_step, adaptation=Adaptation(LORA)),
        "numpygpt-qlora": partial(numpy_step, adaptation=Adaptation(LORA, "nf4,double")),
    },
    "decode": {
        OURS: numpy_decode,
        "huggingface": huggingface_decode,
        "book": book_decode,
        "numpygpt-int8": partial(numpy_decode, scheme="int8"),
        "numpygpt-nf4": partial(numpy_decode, scheme="nf4"),
    },
}


def check_installed(names: Iterable[str]) -> None:
    """Raise InputError, which says how to install it, if the package of a contender is missing."""
    for name in names:
        packages = [] if name.startswith(OURS) else ["torch", *["transformers"] * (name == "huggingface")]
        missing = " ".join(package for package in packages if find_spec(package) is None)
        if missing:
            raise InputError(f"the peer {name} needs {missing}; install with: pip install {missing}")


def prepared(name: str, task: Task) -> Run:
    """The run of a contender on the task, with random token ids."""
    columns = PROMPT_TOKENS if task.kind == "decode" else task.tokens + 1
    ids = np.random.default_rng(0).integers(0, task.config.vocab_size, (task.batch_size, columns))
    return CONTENDERS[task.kind][name](task.config, ids)
