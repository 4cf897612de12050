"""The oracle of each objective, and of the operations of which objectives are made: formulas in PyTorch.

They are as the oracles of `torchgpt.checks.oracles`, which lists them too. Constants, such as weights, come as tensors
and have no gradient.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from numpygpt.ops.cross_entropy import IGNORE_INDEX

Outcome = tuple[Tensor, Mapping[str, Tensor]]


# Operations


def token_log_probs(
    logits: Tensor, ids: Tensor, *, smoothing: float = 0.0, ignore_index: int = IGNORE_INDEX
) -> Outcome:
    """This is PyTorch's cross-entropy of each token, with the opposite sign, with its two terms written out."""
    log_probs = F.log_softmax(logits, dim=-1)
    counts = ids != ignore_index
    given = log_probs.gather(-1, ids.masked_fill(~counts, 0).unsqueeze(-1)).squeeze(-1)
    y = given if smoothing == 0 else (1 - smoothing) * given + smoothing * log_probs.mean(dim=-1)
    highest = logits.detach().amax(dim=-1, keepdim=True)
    log_sum = (logits.detach() - highest).exp().sum(dim=-1, keepdim=True).log()
    return y.masked_fill(~counts, 0), {"highest": highest, "log_sum": log_sum}


def weighted_mean(x: Tensor, weights: Tensor, *, over: str = "tokens", normalizer: float | None = None) -> Outcome:
    """A loop over the sequences."""
    w = weights.to(x.dtype)
    parts = [(a * v.masked_fill(a == 0, 0)).sum() for a, v in zip(w, x, strict=True)]
    if over == "sequences":
        lengths = [a.sum() for a in w]
        parts = [part / length.masked_fill(length == 0, 1) for part, length in zip(parts, lengths, strict=True)]
        divisor = (torch.stack(lengths) != 0).sum().to(x.dtype)
    else:
        divisor = w.sum() if over == "tokens" else torch.ones_like(w.sum())
    if normalizer is not None:
        divisor = torch.full_like(divisor, normalizer)
    return torch.stack(parts).sum() / divisor.masked_fill(divisor == 0, 1), {}


def kl_divergence(first: Tensor, second: Tensor) -> Outcome:
    """PyTorch's function takes the logarithms, the second first; it is NaN where both have no probability."""
    log_p, log_q = F.log_softmax(first, dim=-1), F.log_softmax(second, dim=-1)
    excluded = log_p.exp() == 0
    difference = log_p.masked_fill(excluded, 0) - log_q.masked_fill(excluded, 0)
    y = (log_p.exp() * difference).sum(dim=-1)
    return y, {"log_p": log_p.detach(), "log_q": log_q.detach()}


def kl_estimate(log_probs: Tensor, reference_log_probs: Tensor, *, kind: str = "k3") -> Outcome:
    """The formulas."""
    excluded = log_probs.isneginf()
    u = reference_log_probs.masked_fill(excluded, 0) - log_probs.masked_fill(excluded, 0)
    y = {"k1": -u, "k2": u**2 / 2, "k3": torch.expm1(u) - u}[kind]
    return y, {"u": u.detach()}


def logistic_loss(x: Tensor, labels: Tensor) -> Outcome:
    """The first line of the formula, with PyTorch's log σ. PyTorch's own function is NaN for an infinite score."""
    t = labels.to(x.dtype)
    yes, no = (F.logsigmoid(side).masked_fill(share == 0, 0) for side, share in ((x, t), (-x, 1 - t)))
    return -t * yes - (1 - t) * no, {"yes": x.detach().sigmoid(), "no": (-x.detach()).sigmoid()}


def sigmoid(x: Tensor) -> Outcome:
    """This is PyTorch's own function."""
    return x.sigmoid(), {}


def relu(x: Tensor) -> Outcome:
    """This is PyTorch's own function."""
    return F.relu(x), {}


def silu(x: Tensor) -> Outcome:
    """This is PyTorch's own function."""
    return F.silu(x), {"s": x.detach().sigmoid()}


# Objectives


def weighted_next_token(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    over: str = "tokens",
    normalizer: float | None = None,
) -> Outcome:
    """The mean of the cross-entropies with smoothed labels."""
    counts = (targets != IGNORE_INDEX).to(logits.dtype)
    log_probs, _ = token_log_probs(logits, targets, smoothing=smoothing)
    w = counts if weights is None else counts * weights.to(logits.dtype)
    return weighted_mean(-log_probs, w, over=over, normalizer=normalizer)


def classification(
    logits: Tensor, lengths: Tensor, labels: Tensor, *, smoothing: float = 0.0, normalizer: float | None = None
) -> Outcome:
    """The scores are chosen by a product with a row that is 1 at the last real token."""
    last = F.one_hot(lengths - 1, logits.shape[1]).to(logits.dtype)
    log_probs, _ = token_log_probs((logits * last.unsqueeze(-1)).sum(dim=1), labels, smoothing=smoothing)
    counted = (labels != IGNORE_INDEX).sum().clamp(min=1)
    return -log_probs.sum() / (normalizer or counted), {}


def reward(
    chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, *, normalizer: float | None = None
) -> Outcome:
    """As trl's reward trainer writes it."""
    z = chosen - rejected if margin is None else chosen - rejected - margin.to(chosen.dtype)
    return -F.logsigmoid(z).sum() / (normalizer or len(chosen)), {}


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor | None = None,
    reference_rejected: Tensor | None = None,
    *,
    beta: float = 0.1,
    form: str = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    normalizer: float | None = None,
) -> Outcome:
    """As the authors' code and trl's `cdpo` write it."""
    ahead, behind = chosen, rejected
    if reference_chosen is not None and reference_rejected is not None:
        ahead, behind = chosen - reference_chosen, rejected - reference_rejected
    if chosen_lengths is not None and rejected_lengths is not None:
        ahead, behind = ahead / chosen_lengths.to(ahead.dtype), behind / rejected_lengths.to(ahead.dtype)
    m = ahead - behind
    if form == "ipo":
        losses = (m - 1 / (2 * beta)) ** 2
    else:
        losses = -F.logsigmoid(beta * m) * (1 - label_smoothing) - F.logsigmoid(-beta * m) * label_smoothing
    return losses.sum() / (normalizer or len(chosen)), {}


def reinforce(
    log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    over: str = "tokens",
    normalizer: float | None = None,
) -> Outcome:
    """The formula."""
    A = _where_counted(advantages, weights, log_probs)
    y = -A * log_probs.masked_fill(A == 0, 0)
    return weighted_mean(y, weights, over=over, normalizer=normalizer)


def clipped_policy(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    over: str = "tokens",
    normalizer: float | None = None,
) -> Outcome:
    """With PyTorch's clamp and min, as everybody writes it."""
    y = _clipped_policy(log_probs, old_log_probs, advantages, weights, clip, clip_high)
    return weighted_mean(y, weights, over=over, normalizer=normalizer)


def _clipped_policy(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, weights: Tensor, clip: float, clip_high: float | None
) -> Tensor:
    A = _where_counted(advantages, weights, log_probs)
    log_ratio = _where_counted(log_probs, weights, log_probs) - _where_counted(old_log_probs, weights, log_probs)
    ratio = log_ratio.masked_fill(A == 0, 0).masked_fill(log_probs.isneginf(), -math.inf).exp()
    high = 1 + (clip if clip_high is None else clip_high)
    return -torch.min(ratio * A, ratio.clamp(1 - clip, high) * A)


def clipped_value(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    weights: Tensor,
    *,
    clip: float = 0.2,
    over: str = "tokens",
    normalizer: float | None = None,
) -> Outcome:
    """As trl's PPO wrote it."""
    v, old, target = (_where_counted(array, weights, values) for array in (values, old_values, returns))
    bounded = torch.clamp(v, old - clip, old + clip)
    y = torch.max((v - target) ** 2, (bounded - target) ** 2) / 2
    return weighted_mean(y, weights, over=over, normalizer=normalizer)


def grpo(
    log_probs: Tensor,
    old_log_probs: Tensor,
    reference_log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    beta: float = 0.04,
    kind: str = "k3",
    clip: float = 0.2,
    clip_high: float | None = None,
    over: str = "sequences",
    normalizer: float | None = None,
) -> Outcome:
    """One mean of both terms, as trl writes it."""
    policy = _clipped_policy(log_probs, old_log_probs, advantages, weights, clip, clip_high)
    if beta == 0:
        return weighted_mean(policy, weights, over=over, normalizer=normalizer)
    here, there = (_where_counted(array, weights, log_probs) for array in (log_probs, reference_log_probs))
    k, _ = kl_estimate(here, there, kind=kind)
    return weighted_mean(policy + beta * k, weights, over=over, normalizer=normalizer)


def distillation(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    *,
    temperature: float = 1.0,
    direction: str = "forward",
    over: str = "tokens",
    normalizer: float | None = None,
) -> Outcome:
    """The divergence of all positions, before the weights choose."""
    counts = (weights != 0).unsqueeze(-1)
    ours, theirs = (x.masked_fill(~counts, 0) / temperature for x in (student, teacher))
    y, _ = kl_divergence(theirs, ours) if direction == "forward" else kl_divergence(ours, theirs)
    mean, _ = weighted_mean(y, weights, over=over, normalizer=normalizer)
    return temperature**2 * mean, {}


def hidden_match(
    student: Tensor, teacher: Tensor, weights: Tensor, *, over: str = "tokens", normalizer: float | None = None
) -> Outcome:
    """The formula."""
    counts = (weights != 0).unsqueeze(-1)
    e = student.masked_fill(~counts, 0) - teacher.masked_fill(~counts, 0)
    return weighted_mean((e**2).mean(dim=-1), weights, over=over, normalizer=normalizer)


def _where_counted(x: Tensor, weights: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype).masked_fill(weights == 0, 0)


#: The oracles by the names of their operations.
OBJECTIVE_ORACLES: dict[str, Callable[..., Outcome]] = {
    oracle.__name__: oracle
    for oracle in (
        token_log_probs, weighted_mean, kl_divergence, kl_estimate, logistic_loss, sigmoid, relu, silu,
        weighted_next_token, classification, reward, dpo, reinforce, clipped_policy, clipped_value, grpo,
        distillation, hidden_match,
    )
}  # fmt: skip
