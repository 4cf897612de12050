"""The goal of each objective, made of a run's options."""

from typing import Any

from numpygpt.training.goal import NEXT_TOKEN, Goal
from numpygpt.tuning.aids import Aids
from numpygpt.tuning.answers import Answers
from numpygpt.tuning.classes import Classes
from numpygpt.tuning.distillation import Distillation
from numpygpt.tuning.options import FinetuneOptions
from numpygpt.tuning.policies import ClippedPolicy, ClippedValue, Grpo, Ppo
from numpygpt.tuning.preferences import Preferences
from numpygpt.tuning.rewards import Rewards


def goal_of(options: FinetuneOptions, aids: Aids) -> Goal:
    """The goal of the options' objective. InputError for a value that it cannot have."""
    if options.reads_text:
        return NEXT_TOKEN
    had = options.settings
    clips: dict[str, Any] = {"clip": had.get("clip_range"), "clip_high": had.get("clip_high")}
    match options.objective:
        case "classify":
            return Classes()
        case "reward":
            return Rewards()
        case "dpo":
            return Preferences(aids.reference, had["beta"], had["form"], had["label_smoothing"])
        case "distill":
            assert aids.teacher is not None
            return Distillation(aids.teacher, had["temperature"], had["direction"], had["hidden"], had["over"])
        case "grpo":
            return Grpo(had["temperature"], had["over"], had["beta"] if aids.reference else 0.0, **clips)
        case "ppo":
            policy = ClippedPolicy(had["temperature"], had["over"], **clips)
            return Ppo(policy, ClippedValue(had["clip_range"], had["over"]), had["value_share"])
    return Answers(had["over"], had["label_smoothing"])
