"""Learning-rate schedules."""

import math


def constant(step: int, *, peak_lr: float) -> float:
    """The same learning rate at every step."""
    return peak_lr


def warmup_cosine(step: int, *, peak_lr: float, warmup_steps: int, total_steps: int, min_lr: float = 0.0) -> float:
    """The learning rate of step 0, 1, ...: linear up to peak_lr over warmup_steps, then half a cosine down to min_lr.

    The warm-up is that of Goyal et al. 2017 (arXiv:1706.02677, section 2.2), and the cosine that of Loshchilov & Hutter
    2017 (arXiv:1608.03983, equation 5). The first step has the rate peak_lr / warmup_steps. From total_steps on, or
    from the end of a warm-up that takes longer, the rate is min_lr.
    """
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    if step >= total_steps:
        return min_lr
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + (peak_lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2
