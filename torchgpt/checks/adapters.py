"""Adapters for `numpygpt conform`: the PyTorch twin, in several forms, and Hugging Face's GPT-2.

    numpygpt conform --adapter torchgpt.checks.adapters:Eager
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from numpygpt.checks.dialects import ACTIVATIONS
from numpygpt.checks.trace import INPUTS, LOGITS, PROMPT, TARGETS, TOKENS, Settings, is_parameter, masks_of
from numpygpt.formats import hugging_face
from numpygpt.formats.names import Row
from numpygpt.layers.multi_head_attention import split_heads
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel as NumpyGPTModel
from numpygpt.model.saving import parameter_shapes
from numpygpt.shapes import Array
from numpygpt.watch import Watch, unwatched
from torchgpt.bridge import dropout_masks, to_torch
from torchgpt.model import GPTModel

Arrays = dict[str, Array]
Given = Mapping[str, Array]

#: What no fused kernel of attention shows.
OF_ATTENTION = tuple(f"{d}*.att.{name}" for d in ("", "d_") for name in ("attn_scores", "attn_weights", "dropout"))
NO_MASKS = "it draws its own dropout masks"


class Eager:
    """The twin as the book writes it. It has no cache, and computes the whole text again for each new token."""

    attention = "math"

    def run(self, config: GPTConfig, settings: Settings, given: Given) -> Arrays:
        """Every tensor of the trace, in float64."""
        weights = {name: array for name, array in given.items() if is_parameter(name)}
        model = to_torch(
            NumpyGPTModel.from_state_dict(config, weights, np.float64), copy=True, attention=self.attention
        )
        masks = masks_of(config, given)

        def forward(inputs: Tensor, watch: Watch) -> Tensor:
            with nullcontext() if masks is None else dropout_masks(model, masks):
                return self.logits(model, inputs, watch)

        tensors = generated(lambda text, _: (model(text)[:, -1], None), given[PROMPT], settings.new_tokens)
        return tensors | trained(forward, dict(model.named_parameters()), settings, given)

    def logits(self, model: GPTModel, inputs: Tensor, watch: Watch) -> Tensor:
        """The logits (B, T, V)."""
        logits: Tensor = model(inputs, watch)
        return logits


class Sdpa(Eager):
    """The twin with PyTorch's fused attention."""

    attention = "sdpa"
    not_shown = OF_ATTENTION

    def unable(self, config: GPTConfig, settings: Settings) -> str | None:
        """The kernel of attention draws its own masks."""
        return NO_MASKS if config.drop_rate else None


class Compiled(Eager):
    """The twin through torch.compile. A compiled model shows no activations, and is compiled anew for each length."""

    rungs = ("forward", "gradients", "optimizer")

    def unable(self, config: GPTConfig, settings: Settings) -> str | None:
        """Given masks would be compiled into the model."""
        return NO_MASKS if config.drop_rate else None

    def run(self, config: GPTConfig, settings: Settings, given: Given) -> Arrays:
        """What a compiled model computes; nothing is generated."""
        torch.compiler.reset()
        tensors = super().run(config, settings._replace(new_tokens=0), given)
        del tensors["d_logits"]  # the only gradient of an activation that can be seen
        return tensors

    def logits(self, model: GPTModel, inputs: Tensor, watch: Watch) -> Tensor:
        """The logits (B, T, V); the watch is told the logits alone."""
        logits: Tensor = torch.compile(model, dynamic=False)(inputs)
        watch("logits", logits)
        return logits


def generated(step: Callable[[Tensor, Any], tuple[Tensor, Any]], prompt: Array, new_tokens: int) -> Arrays:
    """The logits before each new token, and the tokens.

    step   takes the whole text (1, T) and what it returned last; returns the logits (1, V) after it, and anything
    """
    if not new_tokens:
        return {}
    text, past, rows = torch.from_numpy(prompt)[None], None, []
    with torch.no_grad():
        for _ in range(new_tokens):
            logits, past = step(text, past)
            rows.append(logits[0].numpy())
            text = torch.cat([text, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return {LOGITS: np.stack(rows), TOKENS: text[0, len(prompt) :].numpy()}


def itself(name: str, array: Array) -> Arrays:
    """One tensor under its own name."""
    return {name: array}


def trained(
    forward: Callable[[Tensor, Watch], Tensor],
    parameters: Mapping[str, nn.Parameter],
    settings: Settings,
    given: Given,
    split: Callable[[str, Array], Arrays] = itself,
) -> Arrays:
    """The tensors of the steps of PyTorch's AdamW.

    forward   from token ids (B, T) to logits; its watch is told the activations
    split     from a tensor of a parameter's or an activation's name to what it holds, by our names
    """
    inputs, targets = (torch.from_numpy(given[name]) for name in (INPUTS, TARGETS))
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    activations: dict[str, Tensor] = {}

    def watch(name: str, tensor: Tensor) -> None:
        if tensor.requires_grad:  # not so for positions that are not learned
            tensor.retain_grad()
        activations[name] = tensor

    tensors: Arrays = {}

    def tell(prefix: str, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            array = np.array(tensor.detach().numpy())
            tensors.update({f"{prefix}{ours}": part for ours, part in split(name, array).items()})

    for step in range(1, settings.steps + 1):
        before = "" if step == 1 else f"step{step}."
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(inputs, watch if step == 1 else unwatched).flatten(0, 1), targets.flatten())
        loss.backward()
        tensors[f"{before}loss"] = np.array(loss.detach().numpy())
        for name, parameter in parameters.items():
            tell(f"{before}d_", name, parameter.grad)
        optimizer.step()
        for name, parameter in parameters.items():
            tell(f"step{step}.", name, parameter)
            for moment in ("exp_avg", "exp_avg_sq"):
                tell(f"step{step}.{moment}.", name, optimizer.state[parameter][moment])
    for name, tensor in activations.items():
        tell("", name, tensor)
        tell("d_", name, tensor.grad)
    return tensors


# Hugging Face


class HuggingFace:
    """GPT2LMHeadModel of `transformers`, with its cache of keys and values.

    What our model does without and GPT-2 has (a bias, learned positions) gets its stand-in, and is not trained.
    """

    not_shown = OF_ATTENTION

    def unable(self, config: GPTConfig, settings: Settings) -> str | None:
        """Its dropouts cannot be given masks."""
        return NO_MASKS if config.drop_rate else None

    def run(self, config: GPTConfig, settings: Settings, given: Given) -> Arrays:
        """The tensors of the trace, in float64."""
        weights = {name: array for name, array in given.items() if is_parameter(name)}
        model = _gpt2(config, weights)
        rows = [row for row in hugging_face.TABLE.expand(config) if row.ours[0] in parameter_shapes(config)]
        trained_names = {row.theirs for row in rows}
        parameters = dict(model.named_parameters())
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in trained_names)

        def forward(inputs: Tensor, watch: Watch) -> Tensor:
            hooks = [] if watch is unwatched else _hooks(model, config, watch)
            try:
                logits: Tensor = model(inputs, use_cache=False).logits
            finally:
                for hook in hooks:
                    hook.remove()
            return logits

        def next_logits(text: Tensor, past: Any) -> tuple[Tensor, Any]:
            output = model(text if past is None else text[:, -1:], past_key_values=past, use_cache=True)
            return output.logits[:, -1], output.past_key_values

        own = {row.theirs: parameters[row.theirs] for row in rows}
        tensors = generated(next_logits, given[PROMPT], settings.new_tokens)
        return tensors | trained(forward, own, settings, given, _splitting(rows, config))


def _gpt2(config: GPTConfig, weights: Mapping[str, Array]) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    options: dict[str, Any] = dict.fromkeys(hugging_face.DROPOUTS, 0.0) | {"attn_implementation": "eager"}
    activations = {ours: theirs for theirs, ours in reversed(hugging_face.ACTIVATIONS.items())}
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.emb_dim,
            n_head=config.n_heads,
            n_layer=config.n_layers,
            activation_function=activations[config.activation],
            layer_norm_epsilon=config.norm_eps,
            tie_word_embeddings=config.tie_weights,
            bos_token_id=0,
            eos_token_id=0,
            **options,
        )
    ).double()
    tensors = hugging_face.TABLE.to_theirs(config, weights)
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}, strict=False)
    return model.eval()


def _hooks(model: Any, config: GPTConfig, watch: Watch) -> list[Any]:
    """Hooks that tell the watch what each module outputs, by the names of `dialects.ACTIVATIONS`.

    Two tensors are the output of no module, and the input of one: the residual of ln_2, and context_vec of c_proj.
    """
    modules = dict(model.named_modules())
    told: set[str] = set()
    hooks = []

    def output(name: str) -> Callable[..., None]:
        return lambda module, inputs, found: watch(name, found[0] if isinstance(found, tuple) else found)

    def input_(name: str) -> Callable[..., None]:
        return lambda module, inputs: watch(name, inputs[0])

    for name in _activations(config):
        module = modules.get(name) or modules.get(f"transformer.{name}")
        ours = set(_ours_of_activation(name))
        if module is not None and not ours & told:
            told |= ours
            hooks.append(module.register_forward_hook(output(name)))
    for i in range(config.n_layers):
        block = modules[f"transformer.h.{i}"]
        hooks.append(block.ln_2.register_forward_pre_hook(input_(f"trf_blocks.{i}.residual")))
        hooks.append(block.attn.c_proj.register_forward_pre_hook(input_(f"trf_blocks.{i}.att.context_vec")))
    return hooks


def _activations(config: GPTConfig) -> list[str]:
    """The names of the modules of `dialects.ACTIVATIONS`, block by block."""
    numbers = [str(i) for i in range(config.n_layers)]
    return [
        name.replace("{i}", i) for name in ACTIVATIONS for i in (numbers if "{i}" in name else [""])
    ]


def _ours_of_activation(theirs: str) -> list[str]:
    parts = theirs.split(".")
    number = parts[1] if len(parts) > 1 else ""
    general = ".".join(["h", "{i}", *parts[2:]]) if number else theirs
    return [name.replace("{i}", number) for name in ACTIVATIONS.get(general, (theirs,))]


def _splitting(rows: list[Row], config: GPTConfig) -> Callable[[str, Array], Arrays]:
    """How each tensor of theirs becomes ours: a parameter by its row, an activation by `dialects.ACTIVATIONS`."""
    by_name = {row.theirs: row for row in rows}

    def split(name: str, array: Array) -> Arrays:
        if name in by_name:
            row = by_name[name]
            return dict(zip(row.ours, row.to_ours(array), strict=True))
        ours = _ours_of_activation(name)
        if len(ours) == 1:
            return {ours[0]: array[0] if ours == ["pos_emb"] and array.ndim == 3 else array}
        parts = np.split(array, len(ours), axis=-1)
        return {name: split_heads(part, config.n_heads) for name, part in zip(ours, parts, strict=True)}

    return split
