"""The properties of models that are frozen in parts or quantized, of bases, and of moments on the disk.

As in `parity_tests.properties`, a property is a function that raises AssertionError if it does not hold, on one fixed
small model.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from numpygpt.adapt import add_lora, dequantize, freeze, load_adapter, quantize, save_adapter, unfreeze
from numpygpt.adapt.files import fingerprint
from numpygpt.adapt.quantized import quantized_projections
from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.numerics import schemes
from numpygpt.shapes import Array
from numpygpt.training.adamw import AdamW
from numpygpt.training.disk_state import zeros_on_disk
from numpygpt.watch import Watch
from parity_tests.adapter_properties import mixed
from parity_tests.optimizer_properties import WAYS, arrays_of, in_numpy, in_torch
from parity_tests.optimizer_properties import agree as agree_in_all
from parity_tests.properties import CONFIG, GRADIENT, INPUTS, TARGETS, TIED, agree, model_of, reference, training_step
from torchgpt.bridge import to_torch

#: What is frozen first, and what of it, and of all, later is not.
PATTERNS = ("trf_blocks.0.*", "*emb.weight")
FROZEN_LATER, TRAINED_AGAIN = "final_norm.*", "trf_blocks.0.norm1.*"
#: What is quantized: some projections, whose biases stay, in blocks that are longer than a row and shorter.
TARGETS_OF = ("W_value", "layers.0", "trf_blocks.1.ff.layers.2")
HOW: dict[str, Any] = {"scheme": "nf4", "block_size": 32, "targets": TARGETS_OF}
#: The optimizers whose moments are put on the disk: with one moment of each parameter, and with two.
ON_DISK = ("sgd_nesterov", "adam")


def frozen_model() -> GPTModel:
    """It is frozen in two goes, and a part is trained again."""
    return unfreeze(freeze(freeze(model_of(), PATTERNS), FROZEN_LATER), TRAINED_AGAIN)


def trained_names() -> set[str]:
    """The names of what is trained of it, found without patterns."""
    names = model_of().named_parameters()
    begins = ("trf_blocks.0.norm1.", "trf_blocks.1.", "out_head.")
    return {name for name in names if name.startswith(begins)}


def freezing() -> None:
    """What is not frozen has PyTorch's gradient, and nothing else has one."""
    expected, seen = reference(CONFIG), training_step(frozen_model())
    of_parameters = {f"{GRADIENT}{name}" for name in model_of().named_parameters()}
    assert seen.keys() & of_parameters == {f"{GRADIENT}{name}" for name in trained_names()}
    for name in seen.keys() & of_parameters:
        if not name.endswith("W_key.bias"):
            agree(seen[name], expected[name], name)


def frozen_steps() -> None:
    """A step of an optimizer moves what is not frozen, and leaves the rest as it is, bit for bit."""
    model = frozen_model()
    before = {name: array.copy() for name, array in model.named_parameters().items()}
    optimizer = AdamW(model, lr=0.1)
    optimizer.step(model.loss_and_grads(INPUTS, TARGETS)[1])
    moved = {name for name, array in model.named_parameters().items() if not np.array_equal(array, before[name])}
    assert moved == trained_names() == optimizer.exp_avg.keys()


def quantized_names() -> set[str]:
    blocks = range(CONFIG.n_layers)
    return {f"trf_blocks.{i}.{end}" for i in blocks for end in ("att.W_value", "ff.layers.0")} | {TARGETS_OF[-1]}


@cache
def whole_twin() -> tuple[Array, dict[str, Array]]:
    """The logits and the gradients of PyTorch's model whose weights are what the codes stand for."""
    weights = {name: array.copy() for name, array in model_of().state_dict().items()}
    for name in quantized_names():
        packed = schemes.quantize(weights[f"{name}.weight"], "nf4", 32)
        weights[f"{name}.weight"] = schemes.dequantize(packed, np.float64)
    twin = to_torch(GPTModel.from_state_dict(CONFIG, weights), copy=True).eval()
    logits = twin(torch.from_numpy(INPUTS))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(TARGETS).flatten()).backward()
    return logits.detach().numpy(), {name: p.grad.numpy() for name, p in twin.named_parameters()}


def quantizing() -> None:
    """The targets alone are quantized, and the model computes what PyTorch's does with the values of the codes."""
    expected, _ = whole_twin()
    model = quantize(model_of(), **HOW)
    assert quantized_projections(model).keys() == quantized_names()
    agree(model(INPUTS), expected, "quantized")
    whole = dequantize(model)
    agree(whole(INPUTS), expected, "dequantized")
    assert whole.frozen == {f"{name}.weight" for name in quantized_names()}
    adapted = quantize(mixed(), "nf4", block_size=32)
    assert any(".lora_" in name for name in adapted.named_parameters())
    assert quantized_projections(adapted).keys() == quantized_projections(quantize(model_of(TIED))).keys()
    assert refused(lambda: quantize(model_of(TIED), targets="out_head"))


def quantized_gradients() -> None:
    """What is not quantized has PyTorch's gradient. The matrices have none, also when they are whole again."""
    _, expected = whole_twin()
    for model in (quantize(model_of(), **HOW), dequantize(quantize(model_of(), **HOW))):
        _, gradients = model.loss_and_grads(INPUTS, TARGETS)
        assert gradients.keys() == expected.keys() - {f"{name}.weight" for name in quantized_names()}
        for name, gradient in gradients.items():
            if not name.endswith("W_key.bias"):
                agree(gradient, expected[name], name)
    adapted = add_lora(model_of(), 2, 3.0, targets=TARGETS_OF)
    _, gradients = quantize(adapted, **HOW).loss_and_grads(INPUTS, TARGETS)
    assert gradients.keys() == {name for name in adapted.named_parameters() if adapted.trained(name)}


def refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except InputError:
        return True
    return False


def bases() -> list[bool]:
    """Whether an adapter is refused by: its base, that with another adapter, another model, one of another size."""
    with TemporaryDirectory() as folder:
        base = model_of(TIED)
        save_adapter(mixed(), folder + "/a", base_sha256=fingerprint(base))
        other = GPTModel.from_state_dict(TIED, {name: 2 * array for name, array in base.state_dict().items()})
        smaller = GPTModel(replace(TIED, n_layers=1), dtype=np.float64)
        models = (base, add_lora(base, 2, 3.0, name="other"), other, smaller)
        return [refused(partial(load_adapter, model, Path(folder) / "a")) for model in models]


def adapters_of_bases() -> None:
    """An adapter is loaded into its base, also beside another adapter, and into no other model."""
    assert bases() == [False, False, True, True]


def moments_on_disk() -> None:
    """Moments in a file are those in memory, bit for bit, step for step."""
    for which in ON_DISK:
        in_memory, on_disk = steps_of(which, on_disk=False), steps_of(which, on_disk=True)
        for ours, expected in zip(on_disk, in_memory, strict=True):
            assert ours.keys() == expected.keys()
            for name, array in ours.items():
                assert array.dtype == expected[name].dtype
                assert np.array_equal(array, expected[name]), f"{which}: {name}"


def optimizers_on_disk() -> None:
    """With moments in a file, parameters and moments equal PyTorch's over several steps."""
    for which in ON_DISK:
        for ours, expected in zip(steps_of(which, on_disk=True), theirs(which), strict=True):
            assert ours.keys() == expected.keys()
            for name in ours:
                agree_in_all(ours[name], expected[name], f"{which}: {name}")


@cache
def theirs(which: str) -> list[dict[str, Array]]:
    return [copied(tensors) for tensors in in_torch(WAYS[which], arrays_of(1), [arrays_of(2), arrays_of(3)])]


def steps_of(which: str, *, on_disk: bool) -> list[dict[str, Array]]:
    """The moments and the parameters after each of two steps."""
    way = WAYS[which]
    with TemporaryDirectory() as folder:
        if on_disk:
            way = way._replace(ours=partial(way.ours, zeros=partial(zeros_on_disk, Path(folder))))
        return [copied(tensors) for tensors in in_numpy(way, arrays_of(1), [arrays_of(2), arrays_of(3)])]


def copied(tensors: dict[str, Array]) -> dict[str, Array]:
    return {name: np.array(array) for name, array in tensors.items()}


def references() -> None:
    """PyTorch's tensors, before any bug is planted."""
    whole_twin()
    for which in ON_DISK:
        theirs(which)


def tell(watch: Watch) -> None:
    """What a frozen model trains, what a quantized one computes, which bases an adapter fits, moments on the disk."""
    quantized = quantize(model_of(), **HOW)
    watch("made.quantized.logits", quantized(INPUTS))
    watch("made.tied_head_refused", np.array(1.0 * refused(lambda: quantize(model_of(TIED), targets="out_head"))))
    models = {"frozen": frozen_model(), "quantized": quantized, "whole": dequantize(quantized)}
    models["adapted"] = quantize(mixed(), "nf4", block_size=32)
    for which, model in models.items():
        for name, gradient in model.loss_and_grads(INPUTS, TARGETS)[1].items():
            watch(f"made.{which}.{GRADIENT}{name}", gradient)
    watch("made.bases_refused", np.array(bases(), np.float64))
    for which in ON_DISK:
        for step, tensors in enumerate(steps_of(which, on_disk=True), start=1):
            for name, tensor in tensors.items():
                watch(f"on_disk.{which}.step{step}.{name}", tensor)


PROPERTIES: dict[str, Callable[[], None]] = {
    "freezing": freezing,
    "frozen_steps": frozen_steps,
    "quantizing": quantizing,
    "quantized_gradients": quantized_gradients,
    "adapters_of_bases": adapters_of_bases,
    "moments_on_disk": moments_on_disk,
    "optimizers_on_disk": optimizers_on_disk,
}
