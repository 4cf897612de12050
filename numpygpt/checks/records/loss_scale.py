"""`loss_scale`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.training import loss_scale

BUGS = (
    Bug(
        "scale_halved_twice",
        "an overflow takes the scale to a quarter, as it does where two parts of a program each update it",
        "no public report known",
        "overflow.scale",
        ("skipped_steps", "halved_once", "grad_scaler"),
        (Change("training.loss_scale:LossScale.overflowed", "self.value /= 2", "self.value /= 4"),),
    ),
    Bug(
        "growth_counted_over_skipped_steps",
        "a step that is left out counts as one without an overflow, so that the scale grows too soon",
        "no public report known",
        "overflow.steps_without",
        ("skipped_steps", "halved_once", "grad_scaler"),
        (
            Change(
                "training.loss_scale:LossScale.overflowed",
                "self.steps_without_overflow = 0",
                "self.steps_without_overflow += 1",
            ),
        ),
    ),
)

RECORD = BugsOnly(loss_scale, "it chooses a number, and has no gradient", BUGS)
