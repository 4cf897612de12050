"""The scale of the loss, which keeps fp16's gradients from vanishing.

The smallest numbers of fp16 are too large for many gradients. So the loss is multiplied by a scale before the backward,
and the gradients are divided by it before anything looks at them (Micikevicius et al. 2018, arXiv:1710.03740, section
3.2): before their norm is taken, and so before they are clipped. A step whose gradients overflow is left out, and the
scale is halved; after GROWTH_INTERVAL steps without an overflow it is doubled. These are the defaults of PyTorch's
torch.amp.GradScaler. That one looks for a number that is not finite in each gradient; here the norms are looked at,
which are not finite in the same cases.
"""

import math
from collections.abc import Mapping
from typing import Any

from numpygpt.errors import InputError
from numpygpt.sections import value_of

#: The section of a checkpoint that NumPy's backend writes in fp16.
SECTION = "loss_scale"
FIRST_SCALE = 2.0**16
SMALLEST_SCALE = 1.0
GROWTH_INTERVAL = 2000


class LossScale:
    """The scale of the loss, which adapts itself; 1 for ever unless the precision is fp16."""

    def __init__(self, precision: str | None) -> None:
        self.adapts = precision == "fp16"
        self.value = FIRST_SCALE if self.adapts else 1.0
        self.steps_without_overflow = 0

    def refuses(self, norms: Mapping[str, float]) -> bool:
        """Whether a step with gradients of these norms is to be left out, because they overflowed."""
        return self.adapts and not all(map(math.isfinite, norms.values()))

    def overflowed(self) -> None:
        """Halve the scale. InputError if the gradients overflow at every scale."""
        if self.value <= SMALLEST_SCALE:
            raise InputError(f"the gradients overflow fp16 at every scale down to {SMALLEST_SCALE:g}; use bf16")
        self.value /= 2
        self.steps_without_overflow = 0

    def fitted(self) -> None:
        """Count a step without an overflow, and double the scale if there were enough of them."""
        if not self.adapts:
            return
        self.steps_without_overflow += 1
        if self.steps_without_overflow == GROWTH_INTERVAL:
            self.value *= 2
            self.steps_without_overflow = 0

    @property
    def note(self) -> str:
        """A line for a person, after a step that was left out."""
        return f"the gradients overflowed fp16: no step was taken; the scale is now {self.value:g}"

    def state(self) -> dict[str, Any]:
        """What is saved, in types that JSON has; nothing without fp16."""
        return {"value": self.value, "steps_without_overflow": self.steps_without_overflow} if self.adapts else {}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned. InputError for anything else.

        A run that has not been in fp16 before begins with the first scale, and without fp16 nothing is loaded.
        """
        if not state:
            return
        value, steps = value_of(state, "value", float), value_of(state, "steps_without_overflow", int)
        if not (0 < value < float("inf") and 0 <= steps < GROWTH_INTERVAL):
            raise InputError(f"the loss scale is {value} after {steps} steps; expected a positive number")
        if self.adapts:
            self.value, self.steps_without_overflow = value, steps
