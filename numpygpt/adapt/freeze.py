"""Parameters that training leaves as they are.

A frozen parameter costs neither a gradient, nor the product for it, nor state of an optimizer. The backward ends where
nothing before is trained.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel


def freeze(model: GPTModel, patterns: str | Iterable[str]) -> GPTModel:
    """The model with the parameters frozen whose names match a pattern, and those that were frozen already.

    patterns   names in which `*` stands for any text: "trf_blocks.*", for example, or "*.bias"; or one of them

    Raises InputError for a pattern that matches no parameter.
    """
    return model.with_parameters(model.parameters, frozen=model.frozen | matching(model, patterns))


def unfreeze(model: GPTModel, patterns: str | Iterable[str]) -> GPTModel:
    """The model in which the parameters whose names match a pattern are trained. InputError as `freeze`."""
    return model.with_parameters(model.parameters, frozen=model.frozen - matching(model, patterns))


def matching(model: GPTModel, patterns: str | Iterable[str]) -> frozenset[str]:
    """The names of the model's parameters that match one of the patterns. InputError for one that matches none."""
    names = list(model.named_parameters())
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            raise InputError(
                f"the pattern {pattern!r} matches no parameter of the model; its parameters have names such as "
                f"{names[0]} and {names[-1]}, and * stands for any text"
            )
        found.update(matched)
    return frozenset(found)
