"""The properties of a training step in mixed precision, on one fixed small model, as in `parity_tests.properties`."""

from collections.abc import Callable
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from numpygpt.model.gpt import GPTModel
from numpygpt.numerics import casting
from numpygpt.numerics.autocast import TABLES, Precision, precision_of
from numpygpt.numerics.formats import BF16, rounded
from numpygpt.ops import linear
from numpygpt.shapes import Array
from numpygpt.training import loss_scale
from numpygpt.training.adamw import AdamW
from numpygpt.training.loss_scale import LossScale
from numpygpt.training.step import StepTaken, loss_and_grads_of, training_step
from numpygpt.watch import Watch
from parity_tests import properties
from parity_tests.properties import CONFIG, GRADIENT, INPUTS, TARGETS, model_of
from torchgpt.model import GPTModel as TorchGPTModel

#: One batch, and the same as two micro-batches.
BATCH = [(INPUTS, TARGETS)]
MICRO_BATCHES = [(INPUTS[:1], TARGETS[:1]), (INPUTS[1:], TARGETS[1:])]
#: Tensors that are cast to float32. A watch is told their gradients before they are cast back.
BEFORE_THE_CAST = ("logits", "attn_scores", "drop_att", "drop_ff")
#: The parameters of products. Their gradients are float32, and hold numbers of the lower format.
OF_PRODUCTS = ("W_query", "W_key", "W_value", "out_proj", "ff.layers", "out_head")


def in_bf16(device: str, dtype: Any = np.float64) -> GPTModel:
    model = model_of(dtype=dtype)
    model.precision = precision_of("bf16", device)
    return model


# Which format


@cache
def dtypes_of_pytorch(device: str) -> dict[str, torch.dtype]:
    """The dtypes of the activations and the loss that PyTorch's twin has under autocast on this device.

    The tensors have no memory, so the device need not be there.
    """
    twin, seen = TorchGPTModel(CONFIG, kernels="fused"), {}
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, torch.bfloat16)
    try:
        with FakeTensorMode():
            weights = {name: torch.empty(weight.shape, device=device) for name, weight in twin.named_parameters()}
            ids = torch.zeros(INPUTS.shape, dtype=torch.long, device=device)
            logits = torch.func.functional_call(twin, weights, (ids, seen.__setitem__))
            seen["loss"] = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    finally:
        torch.set_autocast_enabled(device, False)
    return {name: tensor.dtype for name, tensor in seen.items()}


def is_in_bf16(array: Array) -> bool:
    return np.array_equal(rounded(np.array(array), BF16), array)


def formats_of_tensors() -> None:
    """The activations, gradients and the loss are bf16's numbers where PyTorch's tensors are bf16, and nowhere else.

    The gradient of a tensor has its format.
    """
    for device in TABLES:
        seen: dict[str, Array] = {}
        _, gradients = in_bf16(device).loss_and_grads(
            INPUTS, TARGETS, rng=np.random.default_rng(2), watch=seen.__setitem__
        )
        for name, dtype in dtypes_of_pytorch(device).items():
            low = dtype == torch.bfloat16
            assert is_in_bf16(seen[name]) == low, name
            if low and not name.endswith(BEFORE_THE_CAST):
                assert is_in_bf16(seen[f"{GRADIENT}{name}"]), name
        for name, gradient in gradients.items():
            assert is_in_bf16(gradient) == any(part in name for part in OF_PRODUCTS), name


def _operations(x: torch.Tensor, vector: torch.Tensor, matrix: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    ids = torch.zeros(len(x), dtype=torch.long, device=x.device)
    heads = x.reshape(1, 1, *x.shape)
    return {
        "linear": lambda: F.linear(x, matrix, vector),
        "matmul": lambda: x @ x.T,
        "scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(heads, heads, heads),
        "softmax": lambda: F.softmax(x, -1),
        "layer_norm": lambda: F.layer_norm(x, x.shape[-1:], vector, vector),
        "cross_entropy": lambda: F.cross_entropy(x, ids),
        "embedding": lambda: F.embedding(ids, x),
        "gelu": lambda: F.gelu(x, approximate="tanh"),
        "dropout": lambda: F.dropout(x, 0.5),
        "add": lambda: x + x,
    }


@cache
def tables_of_pytorch(device: str, operands: torch.dtype) -> dict[str, torch.dtype]:
    """{operation: dtype of its result under autocast in bf16} for operands of this dtype."""
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, torch.bfloat16)
    try:
        with FakeTensorMode():
            x = torch.empty(5, 4, dtype=operands, device=device)
            vector, matrix = torch.empty(4, device=device), torch.empty(4, 4, device=device)
            return {name: operation().dtype for name, operation in _operations(x, vector, matrix).items()}
    finally:
        torch.set_autocast_enabled(device, False)


#: The format of the operands that the operations of a GPT have, by the fields of `Precision`.
OPERANDS = {
    **dict.fromkeys(Precision._fields, torch.bfloat16),
    **dict.fromkeys(("linear", "layer_norm"), torch.float32),
}


def tables() -> None:
    """The rule of each operation gives the dtype that PyTorch gives, and so does the format that a GPT takes it in."""
    for device, table in TABLES.items():
        low, wide = (tables_of_pytorch(device, operands) for operands in (torch.bfloat16, torch.float32))
        given = {"lower": (torch.bfloat16, torch.bfloat16), "float32": (torch.float32, torch.float32)}
        given["widest"] = (torch.bfloat16, torch.float32)
        assert {name: given[rule] for name, rule in table.items()} == {name: (low[name], wide[name]) for name in table}
        for field, format_ in precision_of("bf16", device)._asdict().items():
            operation, operands = field.removesuffix("_weights"), OPERANDS[field]
            if field == "dropout_weights":
                operands = tables_of_pytorch(device, torch.bfloat16)["softmax"]
            dtype = tables_of_pytorch(device, operands)[operation]
            assert (format_ == BF16) == (dtype == torch.bfloat16), field


# What is rounded


@cache
def product_of_pytorch() -> dict[str, Array]:
    """A linear layer under autocast on the CPU, and its gradients.

    The sums are exact in float32 in any order, so that their one rounding shows bit for bit.
    """
    x, weight, bias, d_y = (torch.from_numpy(array) for array in _whole_numbers())
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        y = F.linear(*leaves)
    y.backward(d_y.to(y.dtype))
    return {"y": y.detach().float().numpy(), **{n: a.grad.numpy() for n, a in zip("xwb", leaves, strict=True)}}


def _whole_numbers() -> list[Array]:
    rng = np.random.default_rng(3)
    return [rng.integers(-999, 999, shape).astype(np.float32) for shape in ((6, 5), (4, 5), (4,), (6, 4))]


def one_rounding() -> None:
    """A product of rounded factors, and each of its gradients, is rounded once, as PyTorch does: bit for bit."""
    x, weight, bias, d_y = _whole_numbers()
    expected = product_of_pytorch()
    y, saved = casting.forward(linear, BF16, x, weight, bias)
    gradients = casting.backward(linear, d_y, saved)
    for name, ours in zip(expected, (y, *gradients), strict=True):
        assert np.array_equal(ours, expected[name]), name
    assert np.array_equal(casting.product(x, weight.T, BF16), rounded(rounded(x, BF16) @ rounded(weight, BF16).T, BF16))


def weights_are_rounded_when_they_are_read() -> None:
    """A step does not depend on what bf16 lacks of the weights of products, bit for bit."""
    for device in TABLES:
        rounded_before = in_bf16(device)
        for name, array in rounded_before.named_parameters().items():
            if any(part in name for part in OF_PRODUCTS):
                array[...] = rounded(array, BF16)
        loss, grads = in_bf16(device).loss_and_grads(INPUTS, TARGETS)
        expected_loss, expected = rounded_before.loss_and_grads(INPUTS, TARGETS)
        assert loss == expected_loss
        assert same_arrays(grads, expected)


def accumulation() -> None:
    """The gradients of micro-batches are added up in the dtype of the parameters, whatever the format."""
    for device in TABLES:
        model = in_bf16(device)
        counts = [int((targets >= 0).sum()) for _, targets in MICRO_BATCHES]
        alone = [model.loss_and_grads(*batch)[1] for batch in MICRO_BATCHES]
        _, total = loss_and_grads_of(model, MICRO_BATCHES)
        for name, gradient in total.items():
            expected = sum(count / sum(counts) * grads[name] for count, grads in zip(counts, alone, strict=True))
            assert np.array_equal(gradient, expected), name


def formats_of_sums() -> None:
    """A sum of gradients of products is no longer in bf16, in which each of them is."""
    for device in TABLES:
        _, total = loss_and_grads_of(in_bf16(device), MICRO_BATCHES)
        assert not any(is_in_bf16(gradient) for gradient in total.values())


# Steps


def stepped(
    scale: LossScale | None = None,
    *,
    device: str | None = None,
    dtype: Any = np.float32,
    steps: int = 1,
    lr: float = 1e-2,
    **options: Any,
) -> tuple[dict[str, Array], list[StepTaken], AdamW]:
    """Weights, steps and optimizer of a short training in a dtype, or, by the table of a device, in bf16."""
    model = model_of(dtype=dtype) if device is None else in_bf16(device, dtype)
    optimizer = AdamW(model, lr=lr, weight_decay=0.0)
    taken = [training_step(model, optimizer, MICRO_BATCHES, scale=scale, **options) for _ in range(steps)]
    return model.named_parameters(), taken, optimizer


def same_arrays(ours: dict[str, Array], expected: dict[str, Array]) -> bool:
    return all(np.array_equal(array, expected[name]) for name, array in ours.items())


def unscaled_before_clipping() -> None:
    """The scale is a power of two, so that without the rounding of fp16 no bit of a clipped step depends on it."""
    expected, _, _ = stepped(max_norm=0.1, steps=2)
    for value in (2.0**-3, 2.0**10):
        scale = LossScale("fp16")
        scale.value = value
        assert same_arrays(stepped(scale, max_norm=0.1, steps=2)[0], expected)


def norms_without_the_scale() -> None:
    """The norms that a step reports do not depend on the scale either."""
    _, (expected,), _ = stepped()
    _, (taken,), _ = stepped(LossScale("fp16"))
    assert taken.norms == expected.norms


def updates_of_float32() -> None:
    """Adam's first step is as large as the learning rate, and arrives in the weights though bf16 could not hold it."""
    rate = 100 * float(np.finfo(np.float32).eps)
    for device in TABLES:
        before, weights = model_of(dtype=np.float32).named_parameters(), stepped(device=device, lr=rate)[0]
        for name, array in weights.items():
            if "W_key.bias" not in name and "emb" not in name:
                moved = np.abs(array.astype(np.float64) - before[name]).max()
                assert rate / 2 < moved < 1.5 * rate, name


def weights_of_the_optimizer() -> None:
    """The weights after a step are those that the optimizer computes, bit for bit."""
    for device in TABLES:
        model = in_bf16(device, np.float32)
        optimizer = AdamW(model, lr=1e-2, weight_decay=0.0)
        optimizer.step(loss_and_grads_of(model, MICRO_BATCHES)[1])
        assert same_arrays(stepped(device=device)[0], model.named_parameters())


# Overflow


class _Overflowing(GPTModel):
    """A model whose gradients overflow in chosen steps."""

    overflows: list[bool]

    def loss_and_grads(self, *arguments: Any, **options: Any) -> tuple[Any, dict[str, Array]]:
        loss, grads = super().loss_and_grads(*arguments, **options)
        if self.overflows.pop(0):
            grads["final_norm.shift"][0] = np.inf
        return loss, grads


def trained_with(overflows: list[bool], dtype: Any = np.float32) -> tuple[GPTModel, AdamW, LossScale]:
    model = _Overflowing.from_state_dict(CONFIG, properties.weights(CONFIG), dtype)
    model.overflows = list(overflows)
    optimizer, scale = AdamW(model, lr=1e-2, weight_decay=0.0), LossScale("fp16")
    for _ in overflows:
        training_step(model, optimizer, BATCH, scale=scale)
    return model, optimizer, scale


def skipped_steps() -> None:
    """A step that overflows leaves no trace except for the scale, which is halved; what follows is as if without it."""
    model, optimizer, scale = trained_with([False, True, False, True])
    expected, others, _ = trained_with([False, False])
    assert same_arrays(model.named_parameters(), expected.named_parameters())
    assert same_arrays(optimizer.exp_avg, others.exp_avg)
    assert optimizer.steps == 2
    assert (scale.value, scale.steps_without_overflow) == (2.0**14, 0)


def halved_once() -> None:
    """After one step that overflows, weights and moments are as before, and the scale is half of what it was."""
    model, optimizer, scale = trained_with([True])
    assert same_arrays(model.named_parameters(), model_of(dtype=np.float32).named_parameters())
    assert optimizer.steps == 0
    assert not any(array.any() for array in optimizer.exp_avg.values())
    assert scale.state() == {"value": 2.0**15, "steps_without_overflow": 0}


#: Steps between two doublings in `scaler`, far fewer than by default.
INTERVAL = 3
PATTERN = np.random.default_rng(4).random(60) < 0.25


@cache
def scales_of_pytorch() -> list[tuple[float, int]]:
    """The scale and the steps without an overflow of torch.amp.GradScaler, after each step of PATTERN."""
    scaler = torch.amp.GradScaler("cpu", growth_interval=INTERVAL)
    weight = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    found = []
    for overflows in PATTERN:
        optimizer.zero_grad()
        scaler.scale(weight.sum() * (torch.inf if overflows else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        found.append((scaler.get_scale(), scaler.state_dict()["_growth_tracker"]))
    return found


def scaler() -> None:
    """The scale goes as that of torch.amp.GradScaler, overflow by overflow."""
    with mock.patch.object(loss_scale, "GROWTH_INTERVAL", INTERVAL):
        scale, found = LossScale("fp16"), []
        for overflows in PATTERN:
            scale.overflowed() if overflows else scale.fitted()
            found.append((scale.value, scale.steps_without_overflow))
    assert found == scales_of_pytorch()


# What a run through everything tells


def tell(watch: Watch) -> None:
    """Tell a step in bf16 by each table, micro-batches in bf16, and steps with a scale of the loss.

    The arrays are float64, because some bugs show in float32 alone, and count as unseen here.
    """
    for device in TABLES:
        _, gradients = in_bf16(device).loss_and_grads(
            INPUTS, TARGETS, watch=lambda name, array, at=device: watch(f"bf16_{at}.{name}", array)
        )
        for name, gradient in gradients.items():
            watch(f"bf16_{device}.{GRADIENT}{name}", gradient)
        for name, gradient in loss_and_grads_of(in_bf16(device), MICRO_BATCHES)[1].items():
            watch(f"bf16_{device}.micro_batches.{name}", gradient)
        for name, array in stepped(device=device, dtype=np.float64, lr=1e-5)[0].items():
            watch(f"bf16_{device}.step1.{name}", array)
    weights, (taken,), _ = stepped(LossScale("fp16"), dtype=np.float64, max_norm=0.1)
    watch("fp16.norm", np.array(taken.grad_norm))
    for name, array in weights.items():
        watch(f"fp16.step1.{name}", array)
    model, optimizer, scale = trained_with([False, True], np.float64)
    watch("overflow.steps", np.array(optimizer.steps))
    for name, array in model.named_parameters().items():
        watch(f"overflow.{name}", array)
    watch("overflow.scale", np.array(scale.value))
    watch("overflow.steps_without", np.array(scale.steps_without_overflow))


PROPERTIES: dict[str, Callable[[], None]] = {
    "formats_of_tensors": formats_of_tensors,
    "tables": tables,
    "one_rounding": one_rounding,
    "reads_rounded_weights": weights_are_rounded_when_they_are_read,
    "accumulation": accumulation,
    "formats_of_sums": formats_of_sums,
    "unscaled": unscaled_before_clipping,
    "unscaled_norms": norms_without_the_scale,
    "small_updates": updates_of_float32,
    "master_weights": weights_of_the_optimizer,
    "skipped_steps": skipped_steps,
    "halved_once": halved_once,
    "grad_scaler": scaler,
}


def references() -> None:
    """PyTorch's answers, before a bug is planted."""
    for device in TABLES:
        dtypes_of_pytorch(device)
        for operands in (torch.bfloat16, torch.float32):
            tables_of_pytorch(device, operands)
    product_of_pytorch()
    scales_of_pytorch()
