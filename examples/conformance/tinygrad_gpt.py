"""GPT in tinygrad, as an implementation for `numpygpt conform`: the forward is here, tinygrad finds the gradients.

    numpygpt conform --adapter tinygrad_gpt:Adapter       # in this folder

Every tensor has the name of docs/trace-format.md. tinygrad gives the gradient of the loss with respect to any tensor
that it computed, so those of the activations are asked for by name. AdamW is written here, because tinygrad's own keeps
the powers of its betas in float32. For each new token the whole text is computed again, since there is no cache.

tinygrad compiles for its CPU device by clang. Without clang, its device PYTHON interprets the same kernels.
"""

import os
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

os.environ.setdefault("DEV", "CPU" if shutil.which("clang") else "PYTHON")

from tinygrad.tensor import Tensor

Tensors = dict[str, Tensor]
Given = Mapping[str, np.ndarray]


class Adapter:
    """What `numpygpt conform --adapter` asks."""

    def unable(self, config: Any, settings: Any) -> str | None:
        """tinygrad's erf is the approximation 7.1.26 of Abramowitz and Stegun (1964)."""
        return "erf of tinygrad is exact to 1e-7 only" if config.activation == "gelu_erf" else None

    def run(self, config: Any, settings: Any, given: Given) -> dict[str, np.ndarray]:
        tensors = {name: tensor.numpy() for name, tensor in trained(config, settings, given).items()}
        return tensors | generated(config, settings, given)


class Forward:
    """The forward of one batch. Each activation is kept under its name.

    keep   the dropout masks by the names of the dropouts' outputs; without its mask, a dropout does nothing
    """

    def __init__(self, config: Any, weights: Tensors, keep: Tensors) -> None:
        self.config, self.weights, self.keep = config, weights, keep
        self.activations: Tensors = {}

    def tell(self, name: str, x: Tensor) -> Tensor:
        self.activations[name] = x
        return x

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def norm(self, name: str, x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        variance = (centered * centered).mean(-1, keepdim=True)
        y = self.weights[f"{name}.scale"] * centered / (variance + self.config.norm_eps).sqrt()
        shift = self.weights.get(f"{name}.shift")
        return self.tell(name, y if shift is None else y + shift)

    def dropout(self, name: str, x: Tensor) -> Tensor:
        return self.tell(name, x * self.keep[name] / (1 - self.config.drop_rate) if name in self.keep else x)

    def positions(self, n_tokens: int) -> Tensor:
        if self.config.position == "learned":
            return self.tell("pos_emb", self.weights["pos_emb.weight"][:n_tokens])
        D = self.config.emb_dim
        angles = numbers(np.arange(n_tokens)[:, None] * 10000.0 ** (-np.arange(0, D, 2) / D))
        return self.tell("pos_emb", angles.sin().stack(angles.cos(), dim=-1).reshape(n_tokens, D))

    def attention(self, block: str, x: Tensor) -> Tensor:
        B, T, D = x.shape
        H, K = self.config.n_heads, self.config.head_dim

        def heads(name: str, weight: str) -> Tensor:
            split = self.linear(f"{block}.att.{weight}", x).reshape(B, T, H, K).transpose(1, 2)
            return self.tell(f"{block}.att.{name}", split)

        queries, keys, values = heads("queries", "W_query"), heads("keys", "W_key"), heads("values", "W_value")
        future = Tensor(np.triu(np.ones((T, T), bool), 1))
        scores = (queries @ keys.transpose(2, 3) / K**0.5).masked_fill(future, -np.inf)
        scores = self.tell(f"{block}.att.attn_scores", scores)
        weights = self.tell(f"{block}.att.attn_weights", scores.softmax(-1))
        context = self.dropout(f"{block}.att.dropout", weights) @ values
        merged = self.tell(f"{block}.att.context_vec", context.transpose(1, 2).reshape(B, T, D))
        return self.tell(f"{block}.att.out_proj", self.linear(f"{block}.att.out_proj", merged))

    def block(self, block: str, x: Tensor) -> Tensor:
        attended = self.attention(block, self.norm(f"{block}.norm1", x))
        residual = self.tell(f"{block}.residual", x + self.dropout(f"{block}.drop_att", attended))
        hidden = self.linear(f"{block}.ff.layers.0", self.norm(f"{block}.norm2", residual))
        hidden = self.tell(f"{block}.ff.layers.0", hidden)
        active = self.tell(f"{block}.ff.layers.1", gelu(hidden))
        out = self.tell(f"{block}.ff.layers.2", self.linear(f"{block}.ff.layers.2", active))
        return self.tell(block, residual + self.dropout(f"{block}.drop_ff", out))

    def logits(self, inputs: Tensor) -> Tensor:
        tokens = self.tell("tok_emb", self.weights["tok_emb.weight"][inputs])
        x = self.dropout("drop_emb", tokens + self.positions(int(inputs.shape[1])))
        for i in range(self.config.n_layers):
            x = self.block(f"trf_blocks.{i}", x)
        head = self.weights["out_head.weight" if "out_head.weight" in self.weights else "tok_emb.weight"]
        return self.tell("logits", self.norm("final_norm", x) @ head.T)


def gelu(x: Tensor) -> Tensor:
    """GELU by its approximation with tanh (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2)."""
    return 0.5 * x * (1 + ((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)).tanh())


def numbers(array: np.ndarray) -> Tensor:
    return Tensor(np.ascontiguousarray(array, np.float64))


def weights_of(given: Given) -> Tensors:
    endings = (".weight", ".bias", ".scale", ".shift")
    return {name: numbers(array) for name, array in given.items() if name.endswith(endings)}


def trained(config: Any, settings: Any, given: Given) -> Tensors:
    """The tensors of the steps of AdamW. Each step computes the same tensors, so that its kernels are made once."""
    inputs, targets = Tensor(given["inputs"]), Tensor(given["targets"])
    keep = {name.removeprefix("keep."): numbers(array) for name, array in given.items() if name.startswith("keep.")}
    weights = weights_of(given)
    first, second = ({name: numbers(np.zeros(w.shape)) for name, w in weights.items()} for _ in range(2))
    tensors: Tensors = {}
    for step in range(1, settings.steps + 1):
        forward = Forward(config, weights, keep)
        log_probabilities = forward.logits(inputs).log_softmax(-1)
        loss = -log_probabilities.gather(-1, targets[..., None]).mean()
        wanted = weights | forward.activations
        if config.position != "learned":
            del wanted["pos_emb"]
        gradients = dict(zip(wanted, loss.gradient(*wanted.values()), strict=True))
        Tensor.realize(loss, *forward.activations.values(), *gradients.values())
        before = "" if step == 1 else f"step{step}."
        tensors[f"{before}loss"] = loss
        tensors |= forward.activations if step == 1 else {}
        tensors |= {f"{before}d_{name}": d for name, d in gradients.items() if step == 1 or name in weights}
        weights, first, second = adamw(settings, step, weights, gradients, first, second)
        for kind, several in (("exp_avg.", first), ("exp_avg_sq.", second), ("", weights)):
            tensors |= {f"step{step}.{kind}{name}": tensor for name, tensor in several.items()}
    return tensors


def adamw(
    s: Any, step: int, weights: Tensors, gradients: Tensors, first: Tensors, second: Tensors
) -> tuple[Tensors, Tensors, Tensors]:
    """The parameters and the moments after a step (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2)."""
    corrections = numbers(np.array([1 - s.beta1**step, 1 - s.beta2**step])).realize()  # no constants in the kernels
    first = {name: s.beta1 * m + (1 - s.beta1) * gradients[name] for name, m in first.items()}
    second = {name: s.beta2 * v + (1 - s.beta2) * gradients[name].square() for name, v in second.items()}
    Tensor.realize(*first.values(), *second.values())
    updated = {}
    for name, weight in weights.items():
        root = (second[name] / corrections[1]).sqrt() + s.eps
        updated[name] = (1 - s.lr * s.weight_decay) * weight - s.lr * first[name] / corrections[0] / root
    Tensor.realize(*updated.values())
    return updated, first, second


def generated(config: Any, settings: Any, given: Given) -> dict[str, np.ndarray]:
    """The likeliest tokens after the prompt, and the logits before each."""
    if not settings.new_tokens:
        return {}
    weights, prompt = weights_of(given), given["generated.prompt"]
    ids = np.concatenate([prompt, np.zeros(settings.new_tokens, np.int64)])  # of one length, so that it compiles once
    rows = []
    for place in range(len(prompt), len(ids)):
        logits = Forward(config, weights, {}).logits(Tensor(ids[None]))
        rows.append(logits.numpy()[0, place - 1])
        ids[place] = rows[-1].argmax()
    return {"generated.logits": np.stack(rows), "generated.tokens": ids[len(prompt) :]}
