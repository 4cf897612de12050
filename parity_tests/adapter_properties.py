"""The properties of models with adapters, on one fixed small model, as in `parity_tests.properties`."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import peft
import torch

from numpygpt.adapt import add_lora, load_adapter, merge_lora, remove_lora, save_adapter, unmerge_lora
from numpygpt.formats.peft_folder import Adapter, LowRank, write_adapter
from numpygpt.layers import parameters as p
from numpygpt.layers.projections import with_projections
from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import Array
from numpygpt.tree import mapped, mapped_by_name
from numpygpt.watch import Watch
from parity_tests.properties import (
    CONFIG,
    GRADIENT,
    INPUTS,
    TARGETS,
    TIED,
    agree,
    agrees_with_complex_step,
    model_of,
    training_step,
    watch_training_step,
)
from torchgpt.bridge import to_torch
from torchgpt.checks import oracles

#: What the first adapter is made with, and the second. α is no rank, and the first drops a part of its inputs.
ADAPTERS: tuple[dict[str, Any], ...] = (
    {"rank": 3, "alpha": 5.0, "targets": "all-linear", "dropout": 0.25, "name": "default"},
    {"rank": 2, "alpha": 1.5, "targets": ("W_query", "out_head"), "name": "second", "scaling": "rslora"},
)


def adapted(base: GPTModel | None = None) -> GPTModel:
    """A model with two adapters, whose second matrices are not zero."""
    model = base or model_of()
    for options in ADAPTERS:
        model = add_lora(model, **options)
    model = model.with_parameters(model.parameters, frozen=base_names(model))
    rng = np.random.default_rng(31)
    for name, array in model.named_parameters().items():
        if ".lora_B." in name:
            array[...] = rng.standard_normal(array.shape) / 2
    return model


def base_names(model: GPTModel) -> list[str]:
    return [name for name in model.named_parameters() if ".lora_" not in name]


def masks_of(model: GPTModel) -> Any:
    return model.draw_dropout_masks(np.random.default_rng(32), *INPUTS.shape)


def watch_adapters(base: GPTModel, watch: Watch) -> None:
    """Tell the tensors of a training step of adapters, and those of the models that they are merged into."""
    model = adapted(base)
    watch_training_step(model, lambda name, array: watch(f"adapted.{name}", array), masks=masks_of(model))
    merged = merge_lora(model)
    merged.forward(INPUTS, watch=lambda name, array: watch(f"merged.{name}", array))
    watch("merged_twice.logits", merge_lora(merged)(INPUTS))
    watch("merged_base.logits", base(INPUTS))
    unmerge_lora(merged).forward(INPUTS, watch=lambda name, array: watch(f"unmerged.{name}", array))
    if base.config == TIED:  # the model of the files is tied, too
        for names in ("ours", "hugging-face"):
            watch(f"files.{names}.logits", saved_and_loaded(names))
    for name, gradient in add_lora(base, rank=2, alpha=3.0).loss_and_grads(INPUTS, TARGETS)[1].items():
        watch(f"fresh.{GRADIENT}{name}", gradient)


@cache
def reference(tied: bool) -> dict[str, Array]:
    """The logits and the adapters' gradients of that step, from PyTorch in float64, before a bug is planted.

    The scales and the masks are written down here, so that they cannot have the bug.
    """
    config = TIED if tied else CONFIG
    model = adapted(model_of(config))
    masks = masks_of(model)
    scales = {"default": 5 / 3, "second": 1.5 / np.sqrt(2)}
    trained: dict[str, torch.Tensor] = {}

    def as_tensor(name: str, array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(array.copy())
        if ".lora_" in name:
            trained[name] = tensor.requires_grad_()
        return tensor

    parameters = mapped_by_name(as_tensor, model.parameters)
    parameters = _with(parameters, masks.paths, scales)
    tensors = mapped(torch.from_numpy, masks._replace(paths={}))
    hidden, _ = oracles.body(
        torch.from_numpy(INPUTS), parameters.body, n_heads=config.n_heads, masks=tensors, drop_rate=config.drop_rate,
        activation=config.activation, norm_eps=config.norm_eps,
    )  # fmt: skip
    logits, _ = oracles.projection(hidden, parameters.out_head)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(TARGETS).flatten())
    loss.backward()
    gradients = {f"{GRADIENT}{name}": tensor.grad.numpy() for name, tensor in trained.items()}
    return {"logits": logits.detach().numpy(), **gradients}


def _with(parameters: Any, masks: Any, scales: dict[str, float]) -> Any:
    def set_right(projection: str, node: Any) -> Any:
        if not isinstance(node, p.LoRA):
            return node
        keep = {path.name: mask for path, mask in masks.items() if path.projection == projection}
        return node._replace(scales={name: scales[name] for name in node.scales}, keep=keep)

    return with_projections(set_right, parameters)


def adapters() -> None:
    """Logits and gradients equal PyTorch's; nothing else has a gradient; a new adapter changes no logits."""
    for config in (CONFIG, TIED):
        expected = reference(config.tie_weights)
        model = adapted(model_of(config))
        seen = training_step(model, masks=masks_of(model))
        agree(seen["logits"], expected["logits"], "logits")
        gradients = {name for name in seen if name.startswith(f"{GRADIENT}trf_blocks") or name in expected}
        parameters = {f"{GRADIENT}{name}" for name in model.named_parameters()}
        assert gradients & parameters == expected.keys() - {"logits"}
        for name in gradients & parameters:
            agree(seen[name], expected[name], name)
        fresh = add_lora(model_of(config), rank=2, alpha=3.0)
        assert np.array_equal(fresh(INPUTS), model_of(config)(INPUTS))
        assert fresh.loss_and_grads(INPUTS, TARGETS)[1].keys() == set(fresh.named_parameters()) - set(base_names(fresh))


def adapters_complex_step() -> None:
    """The derivative along random directions of all adapters at once, with the base frozen."""
    rng = np.random.default_rng(33)
    for config in (CONFIG, TIED):
        base = model_of(config)
        model, masks = adapted(base), masks_of(adapted(base))
        trained = {name: array for name, array in model.named_parameters().items() if model.trained(name)}

        def forward(arrays: dict[str, Array], model: GPTModel = model, masks: Any = masks) -> Any:
            other = model.with_parameters(mapped_by_name(arrays.get, model.parameters))
            logits, saved = other.forward(INPUTS, masks=masks)
            return logits, lambda d_logits: other.backward(d_logits, saved)

        agrees_with_complex_step(forward, trained, rng)


def merging() -> None:
    """A merged model computes the same, is merged once, and is unmerged to the same again."""
    for config in (CONFIG, TIED):
        model = adapted(model_of(config))
        expected = _without_dropout(model)
        merged = merge_lora(model)
        agree(merged(INPUTS), expected, "merged")
        agree(merge_lora(merged)(INPUTS), expected, "merged twice")
        agree(remove_lora(merged)(INPUTS), expected, "merged and removed")
        agree(unmerge_lora(merged)(INPUTS), expected, "unmerged")
        agree(unmerge_lora(unmerge_lora(merged))(INPUTS), expected, "unmerged twice")
        agree(remove_lora(unmerge_lora(merged))(INPUTS), model_of(config)(INPUTS), "unmerged and removed")


def _without_dropout(model: GPTModel) -> Array:
    """The logits, from the products s B @ A written out."""
    parameters = model.state_dict()
    scales = {"default": 5 / 3, "second": 1.5 / np.sqrt(2)}
    weights = {name: parameters[name].copy() for name in base_names(model)}
    if model.config.tie_weights:
        weights["out_head.weight"] = weights["tok_emb.weight"].copy()
    for name, A in parameters.items():
        projection, _, adapter = name.removesuffix(".weight").partition(".lora_A.")
        if adapter:
            B = parameters[name.replace(".lora_A.", ".lora_B.")]
            weights[f"{projection}.weight"] += scales[adapter] * B @ A
    untied = {**model.config.to_dict(), "tie_weights": False}
    return GPTModel.from_state_dict(untied, weights)(INPUTS)


def adapters_purity() -> None:
    """Nothing that a function is given is changed, and what does not change is shared."""
    base = model_of()
    model = adapted(base)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    logits = base(INPUTS)
    merged = merge_lora(model)
    unmerged = unmerge_lora(merge_lora(merged))
    assert np.array_equal(base(INPUTS), logits)
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())
    assert merged.parameters.tok_emb.weight is base.parameters.tok_emb.weight
    assert not base.frozen
    agree(unmerged(INPUTS), model(INPUTS), "unmerged")


def adapters_decoding() -> None:
    """Token by token with a cache, a model with adapters and a merged one give the logits of the full forward."""
    model = adapted()
    expected = _without_dropout(model)
    for each in (model, merge_lora(model)):
        past = None
        for position in range(INPUTS.shape[1]):
            logits, past = each.decode(INPUTS[:, position : position + 1], past)
            agree(logits, expected[:, position], f"position {position}")


def mixed() -> GPTModel:
    """A tied model with paths of several ranks and scales under one name, beside all projections in one of three."""
    model = model_of(TIED)
    rng = np.random.default_rng(35)
    ranks = {"W_query": 2, "W_key": 1, "W_value": 3, "layers.0": 2}

    def with_path(projection: str, node: Any) -> Any:
        rank = next((rank for name, rank in ranks.items() if projection.endswith(name)), None)
        if rank is None:
            return node
        outputs, inputs = node.weight.shape
        A, B = p.Linear(rng.standard_normal((rank, inputs))), p.Linear(rng.standard_normal((outputs, rank)))
        return p.LoRA(node, {"default": A}, {"default": B}, {"default": 1.25 / rank**2}, {"default": 0.0})

    return model.with_parameters(with_projections(with_path, model.parameters))


def saved_and_loaded(names: str) -> Array:
    """The logits of `mixed` after its adapter was written to a folder with these names, and read."""
    with TemporaryDirectory() as folder:
        save_adapter(mixed(), f"{folder}/adapter", names=names)
        return load_adapter(model_of(TIED), f"{folder}/adapter")(INPUTS)


@cache
def logits_of_mixed() -> Array:
    return mixed()(INPUTS)


def adapter_files() -> None:
    for names in ("ours", "hugging-face"):
        agree(saved_and_loaded(names), logits_of_mixed(), names)


@cache
def folders_of_peft() -> list[tuple[TemporaryDirectory[str], Array]]:
    """Folders that peft wrote of Hugging Face's model and of torchgpt's, and what the models compute."""
    torch.manual_seed(36)
    made = []
    for rank_stabilized in (False, True):
        config = peft.LoraConfig(
            r=2, lora_alpha=5, target_modules=["W_query", "W_value", "layers.0"], use_rslora=rank_stabilized,
            alpha_pattern={"layers.0": 3}, init_lora_weights=False,
        )  # fmt: skip
        model = peft.get_peft_model(to_torch(model_of(), copy=True), config).eval()
        folder = TemporaryDirectory()
        model.save_pretrained(folder.name)
        made.append((folder, model(torch.from_numpy(INPUTS)).detach().numpy()))
    return made


def in_one() -> None:
    """A path beside Hugging Face's projection in one is the same path beside each of our three."""
    with TemporaryDirectory() as folder:
        rng = np.random.default_rng(37)
        A, B = rng.standard_normal((2, 12)), rng.standard_normal((36, 2))
        module = "transformer.h.1.attn.c_attn"
        write_adapter(Path(folder) / "a", Adapter({module: LowRank(A, B, 0.5)}, 0.0))
        model = load_adapter(model_of(), f"{folder}/a")
        base = model_of().state_dict()
        for position, name in enumerate(("W_query", "W_key", "W_value")):
            weight = f"trf_blocks.1.att.{name}.weight"
            expected = base[weight] + 0.5 * B[12 * position : 12 * (position + 1)] @ A
            agree(merge_lora(model).state_dict()[weight], expected, name)


def adapter_files_of_peft() -> None:
    for folder, expected in folders_of_peft():
        agree(load_adapter(model_of(), folder.name)(INPUTS), expected, "peft's folder")
    in_one()
    with TemporaryDirectory() as made:
        save_adapter(mixed(), f"{made}/adapter")
        theirs = peft.PeftModel.from_pretrained(to_torch(model_of(TIED), copy=True), f"{made}/adapter").eval()
        agree(theirs(torch.from_numpy(INPUTS)).detach().numpy(), logits_of_mixed(), "our folder in peft")


PROPERTIES: dict[str, Callable[[], None]] = {
    "adapters": adapters,
    "adapters_complex_step": adapters_complex_step,
    "merging": merging,
    "adapters_decoding": adapters_decoding,
    "adapter_files": adapter_files,
    "adapter_files_of_peft": adapter_files_of_peft,
    "adapters_purity": adapters_purity,
}
