"""Numbers that a candidate was computed with, found by fitting them to its tensor.

Each number of AdamW's settings and of the configuration is moved until the tensor that follows from it comes as close
to the candidate's as it can, by the Gauss-Newton method for one unknown: with J the change of the tensor f per change
of the number x,

    x <- x + <J, candidate - f(x)> / <J, J>
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from numpygpt.checks.causes import Cause
from numpygpt.checks.replay import Replay
from numpygpt.checks.trace import Settings, Tensors
from numpygpt.model.config import GPTConfig
from numpygpt.shapes import Array

#: How often a number is moved, and by which share of itself it is changed to see what that does.
MOVES, NUDGE = 8, 1e-4
#: A number is not made smaller than this share of what it was in one move.
SMALLEST_SHARE = 0.1
#: A number that moves by a smaller share of itself has come to its place.
CONVERGED = 1e-9
#: The significant digits that somebody may have written, the fewest first.
DIGITS = (1, 2, 3, 6)

OF_SETTINGS = ("lr", "beta1", "beta2", "eps", "weight_decay")
OF_CONFIG = {"norm_eps": "the norms' eps", "drop_rate": "drop_rate, by which what is kept is scaled,"}


def fitted(name: str, replay: Replay, base: Tensors) -> Iterator[Cause]:
    """The causes that one number is another one, with the numbers that come closest to the candidate's tensor.

    base   what the replays are given
    """
    config, settings = replay.reference.header.config, replay.reference.header.settings
    for number in OF_SETTINGS:
        yield from _of_number(name, replay, base, getattr(settings, number), partial(_setting, number, settings))
    for number in OF_CONFIG:
        yield from _of_number(name, replay, base, getattr(config, number), partial(_configured, number, config))


def _setting(number: str, settings: Settings, value: float) -> Cause:
    what = f"AdamW's {number} is {value:.6g}, not {getattr(settings, number):g}"
    return Cause(f"adamw_{number}_{value:.6g}", what, settings={number: value})


def _configured(number: str, config: GPTConfig, value: float) -> Cause:
    what = f"{OF_CONFIG[number]} is {value:.6g}, not {getattr(config, number):g}"
    return Cause(f"{number}_{value:.6g}", what, config={number: value})


def _of_number(
    name: str, replay: Replay, base: Tensors, value: float, cause_of: Callable[[float], Cause]
) -> Iterator[Cause]:
    if not value or not cause_of(value).can_change(name):
        return
    fit = _fit(name, replay, base, value, cause_of)
    if fit is not None and abs(fit - value) > NUDGE * value:
        yield from (cause_of(written) for written in dict.fromkeys(float(f"{fit:.{digits}g}") for digits in DIGITS))


def _fit(name: str, replay: Replay, base: Tensors, value: float, cause_of: Callable[[float], Cause]) -> float | None:
    """The number that comes closest; None if the tensor does not depend on it."""

    def tensor(number: float) -> Array | None:
        found = cause_of(number).replayed(replay, base, up_to=name).get(name)
        return None if found is None or found.shape != ours.shape else np.where(np.isfinite(found), found, 0)

    ours = replay.arrays[name]
    for _ in range(MOVES):
        here, there = tensor(value), tensor(value * (1 + NUDGE))
        if here is None or there is None:
            return None
        slope = (there - here) / (value * NUDGE)
        square = float((slope * slope).sum())
        if not square:
            return None
        moved = value + float((slope * (np.where(np.isfinite(ours), ours, 0) - here)).sum()) / square
        if not np.isfinite(moved) or abs(moved - value) <= CONVERGED * value:
            break
        value = max(moved, value * SMALLEST_SHARE)
    return value
