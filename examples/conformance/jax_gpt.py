"""GPT in JAX, as an implementation for `numpygpt conform`: the forward is written here, and JAX finds the gradients.

    numpygpt conform --adapter jax_gpt:Adapter            # in this folder

Every tensor has the name of docs/trace-format.md. To get the gradient of an activation too, the forward adds a shift of
zeros to each, and the loss is differentiated with respect to the shifts. For each new token the whole text is computed
again, since there is no cache.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tensors = dict[str, Any]

#: A model of the ladder takes two steps at most, so it is compiled quickly rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Adapter:
    """What `numpygpt conform --adapter` asks."""

    def run(self, config: Any, settings: Any, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with jax.enable_x64(True):
            tensors = generated(config, settings, given) | trained(config, settings, given)
            return {name: np.asarray(tensor) for name, tensor in tensors.items()}


class Forward:
    """The forward of one batch. Each activation is kept under its name, and `shifts` are added to some.

    keep   the dropout masks by the names of the dropouts' outputs; without its mask, a dropout does nothing
    """

    def __init__(self, config: Any, weights: Tensors, keep: Tensors, shifts: Tensors) -> None:
        self.config, self.weights, self.keep, self.shifts = config, weights, keep, shifts
        self.activations: Tensors = {}

    def tell(self, name: str, x: Any) -> Any:
        shifted = x + self.shifts[name] if name in self.shifts else x
        self.activations[name] = shifted
        return shifted

    def linear(self, name: str, x: Any) -> Any:
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def norm(self, name: str, x: Any) -> Any:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        y = self.weights[f"{name}.scale"] * (x - mean) / jnp.sqrt(variance + self.config.norm_eps)
        return self.tell(name, y + self.weights.get(f"{name}.shift", 0.0))

    def dropout(self, name: str, x: Any) -> Any:
        kept = x * self.keep[name] / (1 - self.config.drop_rate) if name in self.keep else x
        return self.tell(name, kept)

    def positions(self, n_tokens: int) -> Any:
        if self.config.position == "learned":
            return self.tell("pos_emb", self.weights["pos_emb.weight"][:n_tokens])
        D = self.config.emb_dim
        angles = jnp.arange(n_tokens)[:, None] * 10000.0 ** (-jnp.arange(0, D, 2) / D)
        self.activations["pos_emb"] = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(n_tokens, D)
        return self.activations["pos_emb"]

    def attention(self, block: str, x: Any) -> Any:
        B, T, D = x.shape
        H, K = self.config.n_heads, self.config.head_dim

        def heads(name: str, weight: str) -> Any:
            split = self.linear(f"{block}.att.{weight}", x).reshape(B, T, H, K).transpose(0, 2, 1, 3)
            return self.tell(f"{block}.att.{name}", split)

        queries, keys, values = heads("queries", "W_query"), heads("keys", "W_key"), heads("values", "W_value")
        future = jnp.triu(jnp.ones((T, T), bool), 1)
        scores = jnp.where(future, -jnp.inf, queries @ keys.swapaxes(2, 3) / jnp.sqrt(K))
        scores = self.tell(f"{block}.att.attn_scores", scores)
        weights = self.tell(f"{block}.att.attn_weights", jax.nn.softmax(scores, axis=-1))
        context = self.dropout(f"{block}.att.dropout", weights) @ values
        merged = self.tell(f"{block}.att.context_vec", context.transpose(0, 2, 1, 3).reshape(B, T, D))
        return self.tell(f"{block}.att.out_proj", self.linear(f"{block}.att.out_proj", merged))

    def block(self, block: str, x: Any) -> Any:
        attended = self.attention(block, self.norm(f"{block}.norm1", x))
        residual = self.tell(f"{block}.residual", x + self.dropout(f"{block}.drop_att", attended))
        hidden = self.linear(f"{block}.ff.layers.0", self.norm(f"{block}.norm2", residual))
        hidden = self.tell(f"{block}.ff.layers.0", hidden)
        active = jax.nn.gelu(hidden, approximate=self.config.activation == "gelu_tanh")
        active = self.tell(f"{block}.ff.layers.1", active)
        out = self.tell(f"{block}.ff.layers.2", self.linear(f"{block}.ff.layers.2", active))
        return self.tell(block, residual + self.dropout(f"{block}.drop_ff", out))

    def logits(self, inputs: Any) -> Any:
        tokens = self.tell("tok_emb", self.weights["tok_emb.weight"][inputs])
        x = self.dropout("drop_emb", tokens + self.positions(inputs.shape[1]))
        for i in range(self.config.n_layers):
            x = self.block(f"trf_blocks.{i}", x)
        head: Any = self.weights["out_head.weight" if "out_head.weight" in self.weights else "tok_emb.weight"]
        return self.tell("logits", self.norm("final_norm", x) @ head.T)


def weights_of(given: Mapping[str, np.ndarray]) -> Tensors:
    endings = (".weight", ".bias", ".scale", ".shift")
    return {name: array for name, array in given.items() if name.endswith(endings)}


def trained(config: Any, settings: Any, given: Mapping[str, np.ndarray]) -> Tensors:
    """The tensors of the steps of AdamW."""
    inputs, targets = given["inputs"], given["targets"]
    keep = {name.removeprefix("keep."): array for name, array in given.items() if name.startswith("keep.")}

    def loss_of(weights: Tensors, shifts: Tensors) -> tuple[Any, Tensors]:
        forward = Forward(config, weights, keep, shifts)
        log_probabilities = jax.nn.log_softmax(forward.logits(inputs))
        loss = -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1).mean()
        return loss, forward.activations

    weights = weights_of(given)
    shapes = jax.eval_shape(lambda weights: loss_of(weights, {})[1], weights)
    learned = config.position == "learned"
    shifts = {name: np.zeros(of.shape) for name, of in shapes.items() if name != "pos_emb" or learned}
    step_of = jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True), compiler_options=QUICK)
    first, second = ({name: np.zeros(w.shape) for name, w in weights.items()} for _ in range(2))
    tensors: Tensors = {}
    for step in range(1, settings.steps + 1):
        (loss, activations), (gradients, d_activations) = step_of(weights, shifts)
        before = "" if step == 1 else f"step{step}."
        tensors[f"{before}loss"] = loss
        tensors |= {f"{before}d_{name}": gradient for name, gradient in gradients.items()}
        if step == 1:
            tensors |= activations | {f"d_{name}": gradient for name, gradient in d_activations.items()}
        weights, first, second = adamw(settings, step, weights, gradients, first, second)
        for kind, arrays in (("exp_avg.", first), ("exp_avg_sq.", second), ("", weights)):
            tensors |= {f"step{step}.{kind}{name}": array for name, array in arrays.items()}
    return tensors


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def adamw(s: Any, step: Any, weights: Tensors, gradients: Tensors, first: Tensors, second: Tensors) -> Any:
    """The parameters and the moments after a step."""

    def parameter(p: Any, m: Any, v: Any) -> Any:
        root = jnp.sqrt(v) / jnp.sqrt(1 - s.beta2**step) + s.eps
        return (1 - s.lr * s.weight_decay) * p - s.lr / (1 - s.beta1**step) * m / root

    first = jax.tree.map(lambda m, g: s.beta1 * m + (1 - s.beta1) * g, first, gradients)
    second = jax.tree.map(lambda v, g: s.beta2 * v + (1 - s.beta2) * g * g, second, gradients)
    return jax.tree.map(parameter, weights, first, second), first, second


def generated(config: Any, settings: Any, given: Mapping[str, np.ndarray]) -> Tensors:
    """The likeliest tokens after the prompt, and the logits before each."""
    if not settings.new_tokens:
        return {}
    weights, prompt = weights_of(given), given["generated.prompt"]
    logits_of = jax.jit(lambda weights, ids: Forward(config, weights, {}, {}).logits(ids), compiler_options=QUICK)
    ids = np.concatenate([prompt, np.zeros(settings.new_tokens, np.int64)])  # of one length, so that it compiles once
    rows = []
    for place in range(len(prompt), len(ids)):
        rows.append(np.asarray(logits_of(weights, ids[None]))[0, place - 1])
        ids[place] = rows[-1].argmax()
    return {"generated.logits": np.stack(rows), "generated.tokens": ids[len(prompt) :]}
