"""The rungs of the ladder: groups of the tensors of a trace, from what every port has to what few have.

    forward                logits and loss
    activations            every other tensor of the forward
    gradients              of the parameters
    activation-gradients   of every tensor of the forward
    optimizer              moments and parameters after each step of AdamW, and losses and gradients of the later steps
    generation             the logits before each new token, and the tokens, with a cache or without
"""

from numpygpt.checks.trace import LOGITS, TOKENS, is_given, is_parameter

RUNGS = ("forward", "activations", "gradients", "activation-gradients", "optimizer", "generation")


def rung_of(name: str) -> str | None:
    """The rung of the tensor of this name; None for what is given."""
    if is_given(name):
        return None
    if name in (LOGITS, TOKENS):
        return "generation"
    if name.startswith("step"):
        return "optimizer"
    if name.startswith("d_"):
        return "gradients" if is_parameter(name.removeprefix("d_")) else "activation-gradients"
    return "forward" if name in ("logits", "loss") else "activations"
