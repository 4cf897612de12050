"""Parity: how far NumPy's tensors are from PyTorch's, and how far rounding alone may take them.

A step of the whole model, forward and backward, is taken by NumPy and by its PyTorch twin on the same weights, ids and dropout
masks, and compared tensor by tensor: every activation, the loss, the gradient of every activation, the gradient of every parameter.
The truth is PyTorch in float64. With *rounding* for the largest error that `torchgpt.rounding` finds in PROBES runs, allowed are

    float32   FACTOR max(PyTorch's own float32 error, rounding)                of the whole and of each row
    float64   FACTOR rounding                                                  of each row
              max(FACTOR rounding, FLOAT64_NORMWISE ‖truth‖)                   of the whole

so a tensor in float64 must agree to FLOAT64_NORMWISE unless it cannot: a gradient that is zero but for rounding, a LayerNorm over two
numbers, a saturated softmax. FACTOR is there because one run's error is compared with another's.

Why 8 probes: a row of a single number may by chance have a small error in every run that it is judged by. Where its error is
normal with the deviation σ in a probe and at most σ/2 in a run (a rounding error is at most u, and 0.4 u in the mean), the chance
that it is over FACTOR times the largest of K probes is E[(2Φ(|x|/8) - 1)^K], 1e-6 for K = 8; longer rows, and PyTorch's own error
beside the probes', make it smaller still. 4 probes would give 1e-3.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from numpygpt.compare import (
    FLOAT64_NORMWISE,
    Comparison,
    Norms,
    compare,
    difference,
    finite_norms,
    largest,
    normwise,
    scaled,
)
from numpygpt.config import GPTConfig
from numpygpt.model import GPTModel
from numpygpt.random import TorchGenerator
from numpygpt.shapes import Array
from torchgpt.bridge import dropout_masks, to_torch
from torchgpt.model import GPTModel as TorchGPTModel
from torchgpt.rounding import RoundingErrors

FACTOR = 4
PROBES = 8

Tensors = dict[str, Array]


class Reference(NamedTuple):
    """What a run in some dtype is judged by.

    truth      the tensors, in float64
    rounding   the largest errors that rounding made in the probes
    pytorch    PyTorch's own errors in float32; None for float64, where they cannot be told from the truth's
    allowed    the largest errors that agree
    """

    truth: Tensors
    rounding: dict[str, Norms]
    pytorch: dict[str, Norms] | None
    allowed: dict[str, Norms]


def reference(in_torch: Callable[[Any], Callable[[], Tensors]], dtype: Any, seed: int = 0) -> Reference:
    """The reference for a computation in float32 or float64.

    in_torch   in_torch(dtype) prepares the computation in PyTorch, on the same numbers whatever the dtype; calling what it returns
               runs it and returns its tensors by name
    seed       of the probes' errors
    """
    run = in_torch(np.float64)
    truth = run()
    rounding = _largest_errors([_with_rounding_errors(run, dtype, (seed, probe)) for probe in range(PROBES)], truth)
    if np.dtype(dtype) == np.float64:
        allowed = {name: _allowed_in_float64(truth[name], rounding[name]) for name in truth}
        return Reference(truth, rounding, None, allowed)
    pytorch = _largest_errors([in_torch(np.float32)()], truth)
    allowed = {name: scaled(largest([pytorch[name], rounding[name]]), FACTOR) for name in truth}
    return Reference(truth, rounding, pytorch, allowed)


def _with_rounding_errors(run: Callable[[], Tensors], dtype: Any, seeds: tuple[int, int]) -> Tensors:
    with RoundingErrors(dtype, seed=int(np.random.SeedSequence(seeds).generate_state(1)[0])):
        return run()


def _largest_errors(runs: list[Tensors], truth: Tensors) -> dict[str, Norms]:
    return {name: largest(difference(run[name], truth[name]) for run in runs) for name in truth}


def _allowed_in_float64(truth: Array, rounding: Norms) -> Norms:
    allowed = scaled(rounding, FACTOR)
    return allowed._replace(tensor=max(allowed.tensor, normwise(truth).tensor))


# A step of the whole model


class Batch(NamedTuple):
    """What a step is taken on.

    inputs, targets   (B, T) token ids
    dropout_seed      of the masks, the same for both models; None: no dropout
    d_logits          (B, T, V), a cotangent to be propagated back in place of the loss's
    """

    inputs: Array
    targets: Array
    dropout_seed: int | None = None
    d_logits: Array | None = None


def numpy_step(model: GPTModel, batch: Batch) -> Tensors:
    """Every tensor of a step by name: activations, their gradients (`d_`) from the last back, then the parameters' likewise."""
    tensors: Tensors = {}

    def watch(name: str, array: Any) -> None:
        if name in tensors:
            raise ValueError(f"{name} was told twice")
        tensors[name] = np.array(array)

    rng = None if batch.dropout_seed is None else TorchGenerator(batch.dropout_seed)
    if batch.d_logits is None:
        _, gradients = model.loss_and_grads(batch.inputs, batch.targets, rng=rng, watch=watch)
    else:
        masks = None if rng is None else model.draw_dropout_masks(rng, *batch.inputs.shape)
        _, saved = model.forward(batch.inputs, masks=masks, watch=watch)
        gradients = model.backward(batch.d_logits.astype(model.dtype), saved, watch=watch)
    for name in reversed(gradients):
        watch(f"d_{name}", gradients[name])
    return tensors


def torch_step(model: TorchGPTModel, masks: Any, batch: Batch) -> Tensors:
    """The same of PyTorch's twin, with `masks` as `dropout_masks` takes them, or None."""
    activations: dict[str, Tensor] = {}

    def watch(name: str, tensor: Tensor) -> None:
        tensor.retain_grad()
        activations[name] = tensor

    model.zero_grad()
    with nullcontext() if masks is None else dropout_masks(model, masks):
        logits = model(torch.from_numpy(batch.inputs), watch)
    if batch.d_logits is None:
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten())
        loss.backward()
        losses = {"loss": loss.detach().numpy()}
    else:
        logits.backward(torch.from_numpy(batch.d_logits.astype(str(logits.dtype).removeprefix("torch."))))
        losses = {}
    differentiated = [*reversed(activations.items()), *reversed(list(model.named_parameters()))]
    return (
        {name: tensor.detach().numpy() for name, tensor in activations.items()}
        | losses
        | {f"d_{name}": tensor.grad.numpy() for name, tensor in differentiated if tensor.grad is not None}
    )


def model_reference(model: GPTModel, batch: Batch, seed: int = 0) -> Reference:
    """The reference for `numpy_step(model, batch)`, a model in float32 or float64."""
    weights, rng = model.state_dict(), batch.dropout_seed

    masks = None if rng is None else model.draw_dropout_masks(TorchGenerator(rng), *batch.inputs.shape)

    def in_torch(dtype: Any) -> Callable[[], Tensors]:
        twin = to_torch(GPTModel.from_state_dict(model.config, weights, dtype))
        return lambda: torch_step(twin, masks, batch)

    return reference(in_torch, model.dtype, seed)


def compare_step(model: GPTModel, batch: Batch, seed: int = 0) -> tuple[list[Comparison], Reference]:
    """A comparison for every tensor of a step, and what it was judged by."""
    judged_by = model_reference(model, batch, seed)
    return compare(numpy_step(model, batch), judged_by.truth, judged_by.allowed, dtype=model.dtype), judged_by


# The report


class Row(NamedTuple):
    """A line of the parity report; errors and budget are relative to the tensor.

    error     ours, ‖ours - truth‖ / ‖truth‖
    pytorch   PyTorch's own in float32; None in float64, where PyTorch is the truth
    budget    the largest that agrees
    used      the share of the budget used by the whole, or by the row that uses most of it
    verdict   "agrees", "zero" (both, but for rounding), "over budget", or what is at fault
    """

    name: str
    error: float
    pytorch: float | None
    budget: float
    used: float
    verdict: str
    passed: bool
