"""Learning-rate schedules. Each begins with a linear warm-up, and then goes on in its own way.

The warm-up is that of Goyal et al. 2017 (arXiv:1706.02677, section 2.2): steps 0, 1, ... have the rates
peak_lr / warmup_steps, 2 peak_lr / warmup_steps, ..., and step warmup_steps - 1 has peak_lr. The schedules that come
down reach min_lr at total_steps, and stay there. If the warm-up takes longer than that, they go from it to min_lr.
"""

import math


def constant(step: int, *, peak_lr: float, warmup_steps: int = 0) -> float:
    """The learning rate of step 0, 1, ...: linear up to peak_lr, which it keeps."""
    return _warming_up(step, peak_lr, warmup_steps) if step < warmup_steps else peak_lr


def warmup_linear(step: int, *, peak_lr: float, warmup_steps: int, total_steps: int, min_lr: float = 0.0) -> float:
    """The learning rate of step 0, 1, ...: linear up to peak_lr, then linear down to min_lr.

    Devlin et al. 2019 (arXiv:1810.04805, appendix A.2).
    """
    return warmup_stable_decay(
        step,
        peak_lr=peak_lr,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        decay_steps=total_steps,
        min_lr=min_lr,
    )


def warmup_cosine(step: int, *, peak_lr: float, warmup_steps: int, total_steps: int, min_lr: float = 0.0) -> float:
    """The learning rate of step 0, 1, ...: linear up to peak_lr over warmup_steps, then half a cosine down to min_lr.

    The cosine is that of Loshchilov & Hutter 2017 (arXiv:1608.03983, equation 5).
    """
    if step < warmup_steps:
        return _warming_up(step, peak_lr, warmup_steps)
    if step >= total_steps:
        return min_lr
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + (peak_lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2


def warmup_stable_decay(
    step: int, *, peak_lr: float, warmup_steps: int, total_steps: int, decay_steps: int, min_lr: float = 0.0
) -> float:
    """The learning rate of step 0, 1, ...: linear up to peak_lr, which it keeps, and at the end linear down to min_lr.

    Hu et al. 2024 (arXiv:2404.06395, section 4.2), with the linear decay of Hägele et al. 2024 (arXiv:2405.18392,
    section 3). No rate before the decay depends on the length of the run, so one run can be followed by decays
    of several lengths.

    decay_steps   steps from peak_lr down to min_lr; fewer if the warm-up leaves fewer
    """
    if step < warmup_steps:
        return _warming_up(step, peak_lr, warmup_steps)
    if step >= total_steps:
        return min_lr
    decay_begins = max(warmup_steps, total_steps - decay_steps)
    progress = max(0, step - decay_begins) / (total_steps - decay_begins)
    return peak_lr + (min_lr - peak_lr) * progress


def _warming_up(step: int, peak_lr: float, warmup_steps: int) -> float:
    return peak_lr * (step + 1) / warmup_steps
