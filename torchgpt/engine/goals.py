"""The losses of `numpygpt.tuning` in PyTorch, which has their gradients by itself.

The goals are NumPy's own (`numpygpt.tuning.goals`): they say how a batch is weighted and which rows go through the
model. `loss_of` gives the loss of what the model returns of these rows. A batch is the goal's, in tensors; of pairs it
is both answers, the preferred ones first.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.tuning.answers import Answers
from numpygpt.tuning.classes import Classes
from numpygpt.tuning.distillation import Distillation
from numpygpt.tuning.policies import ClippedPolicy, ClippedValue, Grpo, Reinforce
from numpygpt.tuning.preferences import Preferences
from numpygpt.tuning.rewards import Rewards

#: Computes with another model, without gradients: what `torchgpt.parallel.part.Part.forward` returns.
Aid = Callable[..., Any]


def loss_of(goal: Any, aid: Aid | None = None) -> Callable[[Any, Any], Tensor]:
    """The function that gives the mean loss () of what a model returns of a batch, and the batch.

    aid   the reference of Preferences, or the teacher of Distillation
    """

    def loss(output: Any, batch: Any) -> Tensor:
        match goal:
            case Answers():
                return _mean(-log_probs_of(output, batch.targets, goal.smoothing), batch.targets, goal.over)
            case Classes():
                return F.cross_entropy(_last(output, batch.lengths), batch.labels)
            case Rewards():
                chosen, rejected = _last(output, batch.lengths)[:, 0].chunk(2)
                return -F.logsigmoid(chosen - rejected).mean()
            case Preferences():
                return _preferences(goal, output, batch, aid)
            case Distillation():
                assert aid is not None
                return _distillation(goal, output, batch, aid)
            case ClippedValue():
                return _clipped_value(goal, output, batch)
        return _policy(goal, output, batch)

    return loss


def log_probs_of(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """The log-probability (B, T) of each target; 0 where it does not count."""
    rows = at_least_float32(logits).flatten(0, 1)
    losses = F.cross_entropy(
        rows, targets.flatten(), ignore_index=IGNORE_INDEX, label_smoothing=smoothing, reduction="none"
    )
    return -losses.view(targets.shape)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or in the longer format that it has."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean(x: Tensor, targets: Tensor, over: str) -> Tensor:
    """The mean of values (B, T) where targets count, over tokens or over rows."""
    counts = targets != IGNORE_INDEX
    x = torch.where(counts, x, 0.0)
    if over == "tokens":
        return x.sum() / counts.sum().clamp(min=1)
    lengths = counts.sum(dim=1)
    return (x.sum(dim=1) / lengths.clamp(min=1)).sum() / (lengths > 0).sum().clamp(min=1)


def _last(logits: Tensor, lengths: Tensor) -> Tensor:
    """The scores (B, C) at the last real token of each row."""
    return at_least_float32(logits)[torch.arange(len(logits), device=logits.device), lengths - 1]


def _preferences(goal: Preferences, output: Tensor, batch: Any, aid: Aid | None) -> Tensor:
    each = log_probs_of(output, batch.targets).sum(dim=1)
    if aid is not None:
        each = each - log_probs_of(aid(batch.inputs), batch.targets).sum(dim=1)
    if goal.form == "ipo":
        each = each / (batch.targets != IGNORE_INDEX).sum(dim=1)
    chosen, rejected = each.chunk(2)
    margins = chosen - rejected
    if goal.form == "ipo":
        return ((margins - 1 / (2 * goal.beta)) ** 2).mean()
    right, wrong = F.logsigmoid(goal.beta * margins), F.logsigmoid(-goal.beta * margins)
    return -((1 - goal.label_smoothing) * right + goal.label_smoothing * wrong).mean()


def _distillation(goal: Distillation, output: Any, batch: Any, aid: Aid) -> Tensor:
    theirs = aid(batch.inputs, **batch.options, hidden=bool(goal.hidden))
    logits, teacher = (output[0], theirs[0]) if goal.hidden else (output, theirs)
    student, teacher = (at_least_float32(x / goal.temperature).log_softmax(dim=-1) for x in (logits, teacher))
    first, second = (teacher, student) if goal.direction == "forward" else (student, teacher)
    divergence = F.kl_div(second, first, log_target=True, reduction="none").sum(dim=-1)
    loss = goal.temperature**2 * _mean(divergence, batch.targets, goal.over)
    if not goal.hidden:
        return loss
    distance = (at_least_float32(output[1]) - at_least_float32(theirs[1])).square().mean(dim=-1)
    return loss + goal.hidden * _mean(distance, batch.targets, goal.over)


def _policy(goal: Any, output: Tensor, batch: Any) -> Tensor:
    log_probs = log_probs_of(output / goal.temperature, batch.targets)
    if isinstance(goal, Reinforce):
        return _mean(-batch.advantages * log_probs, batch.targets, goal.over)
    assert isinstance(goal, Grpo | ClippedPolicy)
    ratio = (log_probs - batch.log_probs).exp()
    high = goal.clip if goal.clip_high is None else goal.clip_high
    clipped = ratio.clamp(1 - goal.clip, 1 + high)
    loss = _mean(-torch.minimum(ratio * batch.advantages, clipped * batch.advantages), batch.targets, goal.over)
    if isinstance(goal, ClippedPolicy) or goal.beta == 0:  # 0 times what may be infinite
        return loss
    apart = batch.reference_log_probs - log_probs
    return loss + goal.beta * _mean(apart.expm1() - apart, batch.targets, goal.over)


def _clipped_value(goal: ClippedValue, output: Tensor, batch: Any) -> Tensor:
    values = at_least_float32(output)[..., 0]
    near = batch.values + (values - batch.values).clamp(-goal.clip, goal.clip)
    squares = torch.maximum((values - batch.returns) ** 2, (near - batch.returns) ** 2)
    return _mean(squares / 2, batch.targets, goal.over)
