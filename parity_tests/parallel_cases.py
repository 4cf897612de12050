"""Training runs that one process computes with plain PyTorch, and several share; see test_parallel_schemes.py."""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from numpygpt.model.config import GPTConfig
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from torchgpt.model import GPTModel

STEPS = 20
FEW_STEPS = 4
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 0.1
#: Below the gradient's norm in about half of the steps.
MAX_NORM = 0.7
#: Rows of the micro-batches in turn. Neither 2 nor 4 processes share them evenly.
ROWS = (5, 3)


SIZES = ("accumulate", "steps", "n_layers")


class Case(NamedTuple):
    """A run: how it is shared, and what it computes. `how` is for `ParallelModel.build`."""

    scheme: str
    dtype: str = "float64"
    tied: bool = True
    accumulate: int = 2
    steps: int = FEW_STEPS
    n_layers: int = 2
    how: tuple[tuple[str, object], ...] = ()

    @property
    def name(self):
        tied = "tied" if self.tied else "untied"
        words = [self.scheme, self.dtype, tied, *(f"{name} {getattr(self, name)}" for name in SIZES)]
        return ", ".join([*words, *(f"{name} {value}" for name, value in self.how)])

    @property
    def config(self):
        """Neither 37 ids nor 9 positions are shared evenly; of four processes of fsdp, one has no positions."""
        return GPTConfig(37, 9, 16, 4, self.n_layers, 0.0, qkv_bias=not self.tied, tie_weights=self.tied)

    @property
    def alone(self):
        """The same run in one process. Runs that differ in their scheme only are one then."""
        return self._replace(scheme="ddp=1")

    @property
    def longer(self):
        """The same run with STEPS steps."""
        return self._replace(steps=STEPS)


FUSED = (("kernels", "fused"), ("attention", "sdpa"), ("checkpoint_activations", True), ("rows_at_once", 5))


def kinds_of(scheme):
    """The runs of a scheme that is shown with tied weights, with untied ones, and with everything fused."""
    accumulates = scheme != "fsdp=2,tp=2"  # which takes longest
    tied = Case(scheme, accumulate=1 + accumulates)
    return [
        tied.longer if scheme == "fsdp=2" else tied,
        Case(scheme, tied=False, accumulate=2 - accumulates),
        Case(scheme, "float32", how=FUSED),
    ]


#: The runs whose end is saved: the first among two processes, the second among four.
SAVED = Case("fsdp=2").longer, Case("tp=2,pp=2", steps=2)

#: {processes: the runs that they share}
CASES = {
    2: [case for scheme in ("ddp=2", "fsdp=2", "tp=2", "pp=2") for case in kinds_of(scheme)],
    4: [
        *kinds_of("fsdp=2,tp=2"),
        *(Case(scheme, steps=2) for scheme in ("ddp=2,fsdp=2", "ddp=2,tp=2", "ddp=2,pp=2", "fsdp=2,pp=2", "tp=2,pp=2")),
        *(Case(scheme, steps=2) for scheme in ("fsdp=4", "tp=4")),
        Case("pp=4", steps=2, n_layers=4),
    ],
}


def first_weights(config, dtype):
    """{name: tensor} of a new model, as every process draws it."""
    torch.manual_seed(1)
    return {name: tensor.detach() for name, tensor in GPTModel(config).to(dtype).named_parameters()}


def micro_batches(case, step):
    """The (inputs, targets) of a step, of unequal numbers of rows and of targets that count."""
    rng = np.random.default_rng(step)
    n_tokens = case.config.context_length - (step == FEW_STEPS - 1) * 3
    batches = []
    for index in range(case.accumulate):
        shape = ROWS[(step + index) % len(ROWS)], n_tokens
        inputs, targets = rng.integers(0, case.config.vocab_size, (2, *shape))
        targets[rng.random(shape) < rng.random()] = IGNORE_INDEX
        if index == 1 and step % 6 == 0:
            targets[...] = IGNORE_INDEX
        batches.append((inputs, targets))
    batches[0][1][0, 0] = 7  # so that at least one target counts
    return batches


def count(batches):
    return sum(int((targets != IGNORE_INDEX).sum()) for _, targets in batches)


def optimizer_of(parameters):
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def train_alone(case, dtype):
    """What the run gives in one process: the book's model, plain PyTorch, and each step's rows as one large batch.

    losses      (steps)          before each step
    norms       (steps, names)   of each parameter's gradient, before clipping
    first       {name: array}    the gradient of the first step, clipped
    last        {name: array}    the weights after the last step
    evaluated   loss and logits of the first micro-batch after the last step
    """
    model = GPTModel(case.config).to(dtype)
    model.load_state_dict(first_weights(case.config, dtype), strict=False)
    parameters = dict(model.named_parameters())
    optimizer = optimizer_of(parameters.values())
    losses, norms, first = [], [], {}
    for step in range(case.steps):
        batches = micro_batches(case, step)
        optimizer.zero_grad()
        loss = sum(_sum_of_losses(model, *batch) for batch in batches) / count(batches)
        loss.backward()
        losses.append(loss.item())
        norms.append([parameter.grad.norm().item() for parameter in parameters.values()])
        torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_NORM)
        if step == 0:
            first = {name: parameter.grad.clone() for name, parameter in parameters.items()}
        optimizer.step()
    batch = micro_batches(case, 0)[0]
    evaluated = {"loss": _sum_of_losses(model, *batch) / count([batch]), "logits": model(torch.from_numpy(batch[0]))}
    return results(losses, norms, first=first, last=parameters, evaluated=evaluated)


def results(losses, norms, **tensors):
    arrays = {"losses": np.array(losses), "norms": np.array(norms)}
    for kind, by_name in tensors.items():
        arrays |= {f"{kind}.{name}": tensor.detach().numpy() for name, tensor in by_name.items()}
    return arrays


def _sum_of_losses(model, inputs, targets):
    logits = model(torch.from_numpy(inputs)).flatten(0, 1)
    return F.cross_entropy(logits, torch.from_numpy(targets).flatten(), reduction="sum")


def difference(ours, expected, kind):
    """The Euclidean norm of the difference between all arrays of a kind, taken together."""
    names = [name for name in expected if name.partition(".")[0] == kind]
    return math.sqrt(sum(float(((ours[name].astype(np.float64) - expected[name]) ** 2).sum()) for name in names))
