"""`schedules`: real mistakes in the learning-rate schedules."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.training import schedules

BUGS = (
    Bug(
        "warm_up_begins_at_zero",
        "the first step has the learning rate 0, and learns nothing",
        "bert#1293, verl#3674",
        "schedules.constant",
        ("in_sequence", "by_hand"),
        (
            Change(
                "training.schedules:_warming_up",
                "(step + 1)",
                "step",
            ),
        ),
    ),
    Bug(
        "cosine_counts_the_warm_up",
        "the cosine has begun when the warm-up ends, and the rate falls at once",
        "tensorflow#28623",
        "schedules.cosine",
        ("in_sequence", "by_hand"),
        (
            Change(
                "training.schedules:warmup_cosine",
                "(step - warmup_steps) / (total_steps - warmup_steps)",
                "step / total_steps",
            ),
        ),
    ),
    Bug(
        "decay_a_step_late",
        "the rate comes down a step late, and jumps to its minimum",
        "torchtitan#1261",
        "schedules.linear",
        ("in_sequence", "by_hand"),
        (
            Change(
                "training.schedules:warmup_stable_decay",
                "step - decay_begins)",
                "step - 1 - decay_begins)",
            ),
        ),
    ),
    Bug(
        "wsd_decays_from_the_warm_up",
        "there is no stable part: the rate comes down as soon as the warm-up has ended",
        "no public report known",
        "schedules.wsd",
        ("in_sequence", "by_hand"),
        (
            Change(
                "training.schedules:warmup_stable_decay",
                "max(warmup_steps, total_steps - decay_steps)",
                "warmup_steps",
            ),
        ),
    ),
)

RECORD = BugsOnly(schedules, "a schedule has no gradient", BUGS)
