"""A step of a run computed by NumPy in float64, too, from the live weights and the live batch.

However a run is shared and rounded, the oracle is the same: NumPy in the first process, which gets the whole weights
and has the whole batch. The extra step is without dropout, and changes nothing of the run. The loss and the gradients
of all parameters are compared. Each may be FACTOR times as far off as what rounding in the run's format does to it
(`torchgpt.checks.parity`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from numpygpt.checks.compare import Comparison, Norms, compare
from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import Array
from torchgpt.bridge import to_torch
from torchgpt.checks.parity import FACTOR, REPORT_PROBES, Batch, Tensors, copies_at_once, rounding_errors, torch_step
from torchgpt.engine.batches import Taken

if TYPE_CHECKING:
    from torchgpt.engine.backend import TorchBackend

#: The format that rounding is modelled in, for each precision.
FORMATS = {"tf32": "tf32", "bf16": "bfloat16", "fp16": "float16"}


def verified(run: "TorchBackend", taken: Sequence[Taken]) -> list[str]:
    """What there is to say of the run's next step; one line in the first process, and none in the others."""
    ours = _tensors_of(run, taken)
    weights = {name: whole.numpy() for name, whole in run.model.each_whole()}
    if not run.team.is_first:
        return []
    inputs, targets = (np.concatenate(ids) for ids in zip(*(batch.whole for batch in taken), strict=True))
    batch = Batch(inputs, targets)
    comparisons = _compared(run, GPTModel.from_state_dict(run.config, weights, np.float64), batch, ours)
    worst = max(comparisons, key=lambda comparison: comparison.used if comparison.passed else float("inf"))
    verdict = "within rounding" if worst.passed else f"NOT within rounding: {worst.fault or 'over budget'}"
    return [
        f"step {run.optimizer.steps + 1} by NumPy in float64: {len(comparisons)} tensors, {verdict}; the worst is "
        f"{worst.name}, which is off by {worst.error:.2g}, {worst.used:.0%} of its budget"
    ]


def _tensors_of(run: "TorchBackend", taken: Sequence[Taken]) -> dict[str, Array]:
    """The run's own loss and gradients without dropout."""
    n_targets = sum(batch.n_targets for batch in taken)
    loss = run.model.gradients([batch.placed for batch in taken], n_targets, dropout=False)
    gradients = {name: p.grad for name, p in run.model.parameters().items() if p.grad is not None}
    tensors = {f"d_{name}": whole.numpy() for name, whole in run.model.each_whole(gradients)}
    return {"loss": loss.cpu().numpy(), **tensors}


def _compared(run: "TorchBackend", model: GPTModel, batch: Batch, ours: Tensors) -> list[Comparison]:
    loss, gradients = model.loss_and_grads(batch.inputs, batch.targets)
    truth: Tensors = {"loss": np.asarray(loss), **{f"d_{name}": gradient for name, gradient in gradients.items()}}
    twin = to_torch(model)
    rounding = rounding_errors(
        lambda copies: {name: t for name, t in torch_step(twin, batch, None, copies).items() if name in truth},
        truth,
        FORMATS.get(run.settings.precision or "", run.options.dtype),
        probes=REPORT_PROBES,
        at_once=copies_at_once(model),
    )
    allowed = {
        name: Norms(FACTOR * errors.tensor, np.full_like(errors.rows, np.inf)) for name, errors in rounding.items()
    }
    return compare({name: np.asarray(t, np.float64) for name, t in ours.items()}, truth, allowed, dtype=np.float64)
