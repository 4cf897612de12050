"""Parity: how far NumPy's tensors are from PyTorch's, and how far rounding alone may move them.

NumPy and its PyTorch twin take the same step of the whole model, forward and backward, on the same weights, token ids
and dropout masks. The steps are compared tensor by tensor: every activation, the loss, the gradient of every activation
and of every parameter. The truth is PyTorch in float64. The errors of sound computations are measured, and ours may be
FACTOR times as large:

    float32   FACTOR max(PyTorch's own float32 error, rounding)    of the whole tensor and of each row
    float64   FACTOR rounding                                      of each row
              max(FACTOR rounding, FLOAT64_NORMWISE ‖truth‖)       of the whole tensor

Here *rounding* is what random rounding errors do to the tensor or row (`torchgpt.checks.rounding`). So a tensor in
float64 has to agree to FLOAT64_NORMWISE, unless no computation can agree so well: a gradient that is zero except for
rounding, a LayerNorm over two values, a saturated softmax.

"FACTOR rounding" is sqrt(FACTOR) times the largest error among PROBES runs whose rounding errors are sqrt(FACTOR) times
as large as those of the format. If errors are proportional to the rounding errors, this is the same as enlarging either
by FACTOR. In a saturated softmax they are not. The error of a weight near 0 or 1 is an exponential of the rounding
errors, so only larger rounding errors show how large it can be. If two scores tie, a weight may flip; its error is then
as large as it can be, and only a factor on the error itself allows it.

How often a sound run is blamed. A row of one value may by chance have a small error in every probe. Let the sum of
rounding errors that moves it be normal, with the deviation 2σ in a probe and at most σ/2 in a run (a rounding error is
at most u, and 0.4 u on average), and let the error grow with that sum, to one side only. The probability that no probe
moves it as far as the run does is E[Φ(x/4)^PROBES] for a standard normal x: 4e-9 for 64 probes, 2e-6 for 32. It is even
smaller in fact, because of the factor on the error, errors to both sides, rows of several values, and PyTorch's own
errors, which are allowed too.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _functorch
from torch.func import functional_call, vmap

from numpygpt.checks.compare import Comparison, Norms, compare, difference, largest, norms, normwise, scaled
from numpygpt.errors import InputError
from numpygpt.model.body import DropoutMasks
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array
from numpygpt.watch import Watch
from torchgpt.bridge import DTYPES, dropout_masks, to_torch
from torchgpt.checks.rounding import RoundingErrors, format_of
from torchgpt.model import GPTModel as TorchGPTModel

FACTOR = 4.0
MARGIN = math.sqrt(FACTOR)
PROBES = 64
#: A report has fewer probes: it is of one step, of a larger model, whose rows are long.
REPORT_PROBES = 16

#: How many parameters all copies of a model may have together. The probes of a larger model take several runs.
NUMBERS_AT_ONCE = 2**22

Tensors = dict[str, Array]

#: Goes through a range and shows a person how far it has come: `tqdm`, or `iter` to show nothing.
Progress = Callable[[range], Iterable[int]]


class Reference(NamedTuple):
    """What a run in float32 or float64 is judged by, each by the names of the tensors.

    truth      PyTorch's tensors in float64
    rounding   the errors that rounding makes
    pytorch    PyTorch's own errors in float32; None for float64, in which they are as unknown as ours
    allowed    the largest errors that count as agreement
    """

    truth: Tensors
    rounding: dict[str, Norms]
    pytorch: dict[str, Norms] | None
    allowed: dict[str, Norms]


def reference(
    in_torch: Callable[[Any], Callable[[int], Tensors]],
    dtype: Any,
    *,
    probes: int = PROBES,
    at_once: int = PROBES,
    progress: Progress = iter,
) -> Reference:
    """What a computation in `dtype`, float32 or float64, is judged by.

    in_torch   in_torch(dtype) prepares the computation in PyTorch in that dtype, always on the same values. It returns
               a function of a number of copies, which runs the computation in so many copies side by side and returns
               its tensors by name, with the copies along a new first axis
    probes     how many runs with rounding errors there are
    at_once    how many of them are computed side by side
    progress   goes through the runs
    """
    run = in_torch(np.float64)
    truth = {name: np.asarray(copies[0]) for name, copies in run(1).items()}
    rounding = rounding_errors(run, truth, dtype, probes=probes, at_once=at_once, progress=progress)
    rounding = {name: _with_underflow(errors, float(np.finfo(dtype).tiny)) for name, errors in rounding.items()}
    if np.dtype(dtype) == np.float64:
        allowed = {name: _allowed_in_float64(truth[name], rounding[name]) for name in truth}
        return Reference(truth, rounding, None, allowed)
    pytorch = _errors(in_torch(dtype)(1), truth)
    allowed = {name: scaled(largest([pytorch[name], rounding[name]]), FACTOR) for name in truth}
    return Reference(truth, rounding, pytorch, allowed)


def rounding_errors(
    run: Callable[[int], Tensors],
    truth: Tensors,
    dtype: Any,
    *,
    probes: int = PROBES,
    at_once: int = PROBES,
    progress: Progress = iter,
) -> dict[str, Norms]:
    """What rounding to `dtype`, one of `rounding.FORMATS`, does to a computation. The options are those of `reference`.

    run     run(copies) computes in float64, in as many copies
    truth   its tensors without rounding errors
    """
    errors = [_errors(tensors, truth) for tensors in _probes(run, dtype, probes, at_once, progress)]
    return {name: scaled(largest(error[name] for error in errors), 1 / MARGIN) for name in truth}


def _probes(
    run: Callable[[int], Tensors], dtype: Any, probes: int, at_once: int, progress: Progress
) -> Iterator[Tensors]:
    making_errors = RoundingErrors(dtype, seed=0, factor=MARGIN)
    for done in progress(range(0, probes, at_once)):
        with making_errors:
            tensors = run(min(at_once, probes - done))
        yield tensors


def _errors(copies: Tensors, truth: Tensors) -> dict[str, Norms]:
    """The largest errors among the copies."""
    errors = {}
    for name, tensor in truth.items():
        tensor = np.atleast_1d(tensor)
        rows = difference(copies[name].reshape(-1, *tensor.shape), tensor).rows.reshape(-1, tensor[..., 0].size)
        errors[name] = Norms(float(norms(rows).rows.max()), rows.max(axis=0))
    return errors


def _with_underflow(rounding: Norms, smallest_normal: float) -> Norms:
    """The norms, but at least the smallest normal number.

    Smaller numbers lose digits. The probes do not model this, because their errors are relative to each result.
    """
    return Norms(max(rounding.tensor, smallest_normal), np.maximum(rounding.rows, smallest_normal))


def _allowed_in_float64(truth: Array, rounding: Norms) -> Norms:
    allowed = scaled(rounding, FACTOR)
    return Norms(max(allowed.tensor, normwise(truth).tensor), allowed.rows)


def run_in_copies(
    function: Callable[[dict[str, Tensor], Watch], Any],
    inputs: Mapping[str, Tensor],
    cotangents: Mapping[str, Array],
    copies: int,
) -> Tensors:
    """Every tensor that a computation in PyTorch tells its watch, and the gradients, with the copies as first axis.

    function     function(inputs, watch) computes one copy; it returns any of its tensors
    inputs       the tensors that it depends on, by name
    cotangents   the gradients of some watched tensors by name, which are propagated back
    copies       how many copies are computed
    returns      {name: tensor} in the order of the watch; then `d_name` for each of them that has a gradient, and
                 then for each input, from the last to the first
    """
    stacked = {name: tensor.detach().expand(copies, *tensor.shape).clone() for name, tensor in inputs.items()}
    return run_stacked(function, stacked, cotangents, copies)


def run_stacked(
    function: Callable[[dict[str, Tensor], Watch], Any],
    stacked: dict[str, Tensor],
    cotangents: Mapping[str, Array],
    copies: int,
) -> Tensors:
    """The same for inputs that differ between the copies: `stacked` has them along a first axis."""
    watched: dict[str, tuple[Tensor, int]] = {}

    def watch(name: str, tensor: Tensor) -> None:
        watched[name] = _with_copies(tensor, copies)

    vmap(lambda copy: function(copy, watch))({name: tensor.requires_grad_() for name, tensor in stacked.items()})
    tensors = watched | {name: (tensor, 0) for name, tensor in stacked.items()}
    differentiated = [name for name in (*reversed(watched), *reversed(stacked)) if tensors[name][0].requires_grad]
    gradients = torch.autograd.grad(
        [watched[name][0] for name in cotangents],
        [tensors[name][0] for name in differentiated],
        [
            torch.from_numpy(cotangent).expand(copies, *cotangent.shape).movedim(0, watched[name][1])
            for name, cotangent in cotangents.items()
        ],
    )
    with_copies_first = {
        f"d_{name}": gradient.movedim(tensors[name][1], 0)
        for name, gradient in zip(differentiated, gradients, strict=True)
    }
    values = {name: tensor.movedim(axis, 0) for name, (tensor, axis) in watched.items()}
    return {name: tensor.detach().numpy() for name, tensor in (values | with_copies_first).items()}


def _with_copies(tensor: Tensor, copies: int) -> tuple[Tensor, int]:
    """The tensor of all copies, for the tensor of one copy that vmap shows, and the axis along which the copies are."""
    if _functorch.is_batchedtensor(tensor):
        return _functorch.get_unwrapped(tensor), _functorch.maybe_get_bdim(tensor)
    return tensor.expand(copies, *tensor.shape), 0


# A step of the whole model


class Batch(NamedTuple):
    """The data of a step.

    inputs, targets   (B, T) token ids
    dropout_seed      the seed of the masks, which are the same for both models; None: no dropout
    d_logits          (B, T, V) a cotangent of the logits that is propagated back in the place of the loss's gradient
    """

    inputs: Array
    targets: Array
    dropout_seed: int | None = None
    d_logits: Array | None = None

    def masks(self, model: GPTModel) -> DropoutMasks | None:
        """The model's dropout masks for this batch."""
        if self.dropout_seed is None:
            return None
        return model.draw_dropout_masks(TorchGenerator(self.dropout_seed), *self.inputs.shape)


def numpy_step(model: GPTModel, batch: Batch) -> Tensors:
    """A copy of every tensor of a step, by name.

    The order is: activations as the forward computes them, the loss, the activations' gradients `d_...` as the backward
    computes them, the parameters' gradients from the last to the first.
    """
    tensors: Tensors = {}

    def watch(name: str, array: Any) -> None:
        if name in tensors:
            raise ValueError(f"{name} was told twice")
        tensors[name] = np.array(array)

    if batch.d_logits is None:
        rng = None if batch.dropout_seed is None else TorchGenerator(batch.dropout_seed)
        _, gradients = model.loss_and_grads(batch.inputs, batch.targets, rng=rng, watch=watch)
    else:
        _, saved = model.forward(batch.inputs, masks=batch.masks(model), watch=watch)
        gradients = model.backward(batch.d_logits.astype(model.dtype), saved, watch=watch)
    for name in reversed(gradients):
        watch(f"d_{name}", gradients[name])
    return tensors


def torch_step(
    model: TorchGPTModel, batch: Batch, masks: DropoutMasks | None, copies: int, *, d_loss: float = 1.0
) -> Tensors:
    """The same tensors of the PyTorch twin, in copies; activations' gradients in the reversed order of the forward.

    d_loss   the gradient of the loss, with which the backward begins
    """
    inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)

    def forward(weights: dict[str, Tensor], watch: Watch) -> Tensor:
        logits: Tensor = functional_call(model, weights, (inputs, watch))
        if batch.d_logits is None:
            watch("loss", F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        return logits

    name, cotangent = ("loss", np.full((), d_loss)) if batch.d_logits is None else ("logits", batch.d_logits)
    weights = dict(model.named_parameters())
    dtype = str(weights["tok_emb.weight"].dtype).removeprefix("torch.")
    with nullcontext() if masks is None else dropout_masks(model, masks):
        tensors = run_in_copies(forward, weights, {name: cotangent.astype(dtype)}, copies)
    tensors.pop("d_loss", None)
    return tensors


def step_reference(
    model: GPTModel, batch: Batch, *, probes: int = PROBES, progress: Progress = iter
) -> Reference:
    """What `numpy_step(model, batch)` is judged by, for a model in float32 or float64."""
    weights, masks = model.state_dict(), batch.masks(model)

    def in_torch(dtype: Any) -> Callable[[int], Tensors]:
        twin = to_torch(GPTModel.from_state_dict(model.config, weights, dtype))
        return lambda copies: torch_step(twin, batch, masks, copies)

    return reference(in_torch, model.dtype, probes=probes, at_once=copies_at_once(model), progress=progress)


def copies_at_once(model: GPTModel) -> int:
    """How many copies of a step of the model may be run side by side."""
    return max(1, NUMBERS_AT_ONCE // model.num_parameters())


# The report


class Row(NamedTuple):
    """One tensor in the report.

    Errors are relative to ‖truth‖. If a tensor is zero except for rounding, they are relative to the terms that cancel.

    error     our error
    pytorch   PyTorch's own error in float32; None in float64
    budget    the largest error that counts as agreement
    used      the share of the budget that is used, by the whole tensor or by a row of its own budget, whichever is
              largest
    verdict   "agrees", "zero" (ours and the truth are zero except for rounding), "over budget", or why there is no
              error to measure
    """

    name: str
    error: float
    pytorch: float | None
    budget: float
    used: float
    verdict: str
    passed: bool


def report(
    cfg: GPTConfig | Mapping[str, Any],
    dtype: Any = "float32",
    seed: int = 0,
    *,
    batch_size: int = 2,
    tokens: int | None = None,
    probes: int = REPORT_PROBES,
    progress: Progress = iter,
) -> list[Row]:
    """A row for every tensor of one training step on random ids, in the forward's order and then in the backward's.

    The weights are those of `GPTModel(cfg, seed)`, except those of the norms, which are changed: a scale of 1 and a
    shift of 0 would hide that one is missing. There is dropout if the configuration has a drop_rate.

    batch_size, tokens   the size of the step; if `tokens` is None, sequences are as long as the context
    probes, progress     as in `reference`

    Raises InputError for an unusable configuration, and for a dtype other than float32 and float64.
    """
    rng = TorchGenerator(seed)
    model = GPTModel(cfg, rng, dtype)
    for name, array in model.named_parameters().items():
        if "norm" in name:
            array += rng.uniform(array.shape, -0.5, 0.5)
    size = batch_size, model.config.context_length if tokens is None else tokens
    return report_of(model, size, seed, rng=rng, probes=probes, progress=progress)


def report_of(
    model: GPTModel,
    size: tuple[int, int],
    seed: int = 0,
    *,
    rng: TorchGenerator | None = None,
    probes: int = REPORT_PROBES,
    progress: Progress = iter,
) -> list[Row]:
    """The same of a model with weights of its own.

    size   (B, T) of the step
    rng    draws the token ids; None: a generator of the seed, which also draws the dropout masks

    Raises InputError for a dtype other than float32 and float64.
    """
    config, dtype = model.config, model.dtype
    if str(dtype) not in DTYPES:
        raise InputError(f"dtype is {dtype}; expected {' or '.join(DTYPES)}")
    rng = TorchGenerator(seed) if rng is None else rng
    inputs, targets = rng.randint(0, config.vocab_size, (2, *size))
    batch = Batch(inputs, targets, dropout_seed=seed if config.drop_rate else None)
    judged_by = step_reference(model, batch, probes=probes, progress=progress)
    comparisons = compare(numpy_step(model, batch), judged_by.truth, judged_by.allowed, dtype=dtype)
    return [_row(comparison, judged_by, dtype) for comparison in comparisons]


def _row(comparison: Comparison, judged_by: Reference, dtype: Any) -> Row:
    name = comparison.name
    rounding = judged_by.rounding[name].tensor if name in judged_by.rounding else 0.0
    pytorch = judged_by.pytorch[name].tensor if judged_by.pytorch and name in judged_by.pytorch else None
    size = (rounding / format_of(dtype).roundoff if comparison.zero else comparison.size) or 1.0
    agreement = "zero" if comparison.zero else "agrees"
    return Row(
        name,
        error=comparison.error / size,
        pytorch=None if pytorch is None else pytorch / size,
        budget=comparison.allowed / size,
        used=comparison.used,
        verdict=agreement if comparison.passed else comparison.fault or "over budget",
        passed=comparison.passed,
    )
