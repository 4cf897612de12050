"""The head and the cross-entropy in one operation, in blocks of rows: the logits of a whole batch never exist.

    hidden           (N, D)   the hidden states of all positions, taken as rows
    weight           (V, D)   the head's weight; with a group, the rows of the vocabulary that this process holds
    targets          (N)      ids of the whole vocabulary; a row whose target is -100 does not count
    logits           (R, V)   x, of a block of R <= rows_at_once rows
    highest          (R, 1)   h
    total            (R, 1)   s
    loss             ()       the SUM over the rows that count, in nats

Forward, block by block:

    (1)  x = hidden @ weightᵀ
    (2)  h = max(x)                                           the shift cancels, and keeps exp from overflowing
    (3)  s = sum(exp(x - h))
    (4)  loss = sum over counted rows of (log(s) - (x[target] - h))

Derivation. The gradient of cross-entropy (`numpygpt.ops.cross_entropy` has its derivation) and that of a product:

    (5)  d_x = d_loss (exp(x - h) / s - onehot(target))       0 for a row that does not count
    (6)  d_hidden = d_x @ weight
    (7)  d_weight = sum over blocks of d_xᵀ @ hidden

All three are proportional to d_loss, which is one number. So a block's gradients are computed for d_loss = 1 as soon as
its logits are there, in their memory, and the logits are gone before the next block. The backward only multiplies by
d_loss. Nothing is computed twice, and the gradients take N x D and V x D numbers where the logits would take N x V
(Hsu et al. 2024, "Liger Kernel", arXiv:2410.10989, section 3.2).

Over a group of processes, each holds some rows of the weight: its slice of the vocabulary (Shoeybi et al. 2019,
"Megatron-LM", arXiv:1909.08053, section 3). A process computes (1) for its slice. The maximum (2), the sum (3) and
x[target], which one process has and the others take as 0, are reduced over the group, three numbers a row. Then (4) is
the same in each process, (5) and (7) are those of its slice, and (6) is one term of a sum over the group.

Saved: d_hidden and d_weight for d_loss = 1, each only if it is asked for. With a group, d_hidden is summed over the
group in the forward, once for all rows: every process gets the whole gradient, and nobody has to reduce it again.
Numbers: under autocast, the operands of the three products are cast to autocast's dtype, as it casts those of
`nn.Linear`; softmax, loss and the sum over blocks (7) are at least float32. A gradient scaler's factor comes with
d_loss, after the products (6) and (7), in which float16 takes a probability below 3e-8 as 0.
Traps: a mean in the place of the sum, which weights blocks, micro-batches and processes by their number and not by
their counted rows: who wants the mean divides by the counted rows of the whole batch. (h + log(s)) - x[target] for (4):
see `numpygpt.ops.cross_entropy`. In (5), onehot subtracted after rounding to bfloat16: 0.999 - 1 would be 0.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Integer
from torch import Tensor
from torch.autograd.function import once_differentiable

from numpygpt.ops.cross_entropy import IGNORE_INDEX

#: With GPT-2's vocabulary, the logits of so many rows are 206 MB in float32.
ROWS_AT_ONCE = 1024


def loss_sum(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Integer[Tensor, "N"],
    *,
    rows_at_once: int = ROWS_AT_ONCE,
    first_id: int = 0,
    group: dist.ProcessGroup | None = None,
    compiled: bool = False,
) -> Float[Tensor, ""]:
    """The sum of the cross-entropies, in nats, of the targets that are not -100, at least in float32.

    rows_at_once   how many rows have logits at the same time
    first_id       the id of the weight's first row, where a group shares the vocabulary
    group          the processes that share it. Each calls this with the same hidden, targets and rows_at_once, and
                   gets the same loss, the whole gradient of hidden, and the gradient of its own slice of the weight
    compiled       whether torch.compile makes the code of what is computed from a block's logits. On a GPU they are
                   then read and written fewer times; on a CPU this gains nothing

    Targets are not checked here: each is -100 or an id of the vocabulary. There is no second derivative: PyTorch
    raises RuntimeError where one is asked for.
    """
    grad = torch.is_grad_enabled()
    asked = grad and hidden.requires_grad, grad and weight.requires_grad
    loss: Tensor = _LossSum.apply(hidden, weight, targets, _Options(rows_at_once, first_id, group, compiled, *asked))
    return loss


class _Options(NamedTuple):
    """How the loss is computed, and which gradients are asked for."""

    rows_at_once: int
    first_id: int
    group: dist.ProcessGroup | None
    compiled: bool
    wants_hidden: bool
    wants_weight: bool


class _LossSum(torch.autograd.Function):
    """The loss, whose gradients are computed with it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options) -> Tensor:
        """The loss. The gradients for d_loss = 1 are saved."""
        loss, d_hidden, d_weight = _loss_and_gradients(hidden, weight, targets, options)
        ctx.save_for_backward(d_hidden, d_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """The saved gradients times d_loss."""
        d_hidden, d_weight = (None if saved is None else saved * d_loss for saved in ctx.saved_tensors)
        return d_hidden, d_weight, None, None


def _loss_and_gradients(
    hidden: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], targets: Integer[Tensor, "N"], options: _Options
) -> tuple[Float[Tensor, ""], Float[Tensor, "N D"] | None, Float[Tensor, "V D"] | None]:
    """The loss, and the gradients for d_loss = 1 of what asks for one."""
    dtype = _dtype_of_products(hidden)
    head = weight.to(dtype)
    loss = hidden.new_zeros((), dtype=_at_least_float32(dtype))
    d_weight = torch.zeros_like(weight, dtype=_at_least_float32(weight.dtype)) if options.wants_weight else None
    from_logits = _compiled_block() if options.compiled else _block
    d_blocks = []
    blocks = zip(hidden.split(options.rows_at_once), targets.split(options.rows_at_once), strict=True)
    for rows, ids in blocks:
        rows = rows.to(dtype)
        loss_of_block, d_x = from_logits(rows @ head.T, ids, options)  # (1)
        loss += loss_of_block
        if options.wants_hidden:
            d_blocks.append((d_x @ head).to(hidden.dtype))  # (6)
        if d_weight is not None:
            _add_product(d_weight, d_x.T, rows)  # (7)
    d_hidden = torch.cat(d_blocks) if options.wants_hidden else None
    if d_hidden is not None and options.group is not None:
        dist.all_reduce(d_hidden, group=options.group)
    return loss, d_hidden, None if d_weight is None else d_weight.to(weight.dtype)


@cache
def _compiled_block() -> Callable[..., tuple[Tensor, Tensor]]:
    compiled: Callable[..., tuple[Tensor, Tensor]] = torch.compile(_block, dynamic=False)
    return compiled


def _block(
    logits: Float[Tensor, "R V"], targets: Integer[Tensor, "R"], options: _Options
) -> tuple[Float[Tensor, ""], Float[Tensor, "R V"]]:
    """The loss of a block of rows, and the gradient of its logits for d_loss = 1, which may be in their memory."""
    counted = targets.unsqueeze(1) != IGNORE_INDEX
    columns = targets.unsqueeze(1) - options.first_id
    here = counted
    if options.group is not None:
        here = counted & (columns >= 0) & (columns < logits.shape[1])
    columns = columns.where(here, 0)  # any column will do where the target is not here

    x = logits.to(_at_least_float32(logits.dtype))
    highest = x.amax(dim=1, keepdim=True)  # (2)
    if options.group is not None:
        dist.all_reduce(highest, dist.ReduceOp.MAX, options.group)
    x = x.sub_(highest)
    at_target = x.gather(1, columns).where(here, 0)
    x = x.exp_()
    total = x.sum(dim=1, keepdim=True)  # (3)
    if options.group is not None:
        sums = torch.cat((total, at_target), dim=1)
        dist.all_reduce(sums, group=options.group)
        total, at_target = sums.split(1, dim=1)
    loss = (total.log() - at_target).where(counted, 0).sum()  # (4)
    if not (options.wants_hidden or options.wants_weight):
        return loss, logits
    d_x = x.mul_(counted / total)  # (5)
    d_target = d_x.gather(1, columns) - here.to(x.dtype)
    return loss, d_x.to(logits.dtype).scatter_(1, columns, d_target.to(logits.dtype))


def _add_product(total: Float[Tensor, "V D"], a: Float[Tensor, "V R"], b: Float[Tensor, "R D"]) -> None:
    """Add a @ b to the total, without a tensor of the product if the dtypes are equal."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _dtype_of_products(hidden: Tensor) -> torch.dtype:
    """The dtype to which autocast would cast the operands of a product. It leaves float64, and the device "meta"."""
    device = hidden.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast and hidden.dtype != torch.float64 else hidden.dtype
