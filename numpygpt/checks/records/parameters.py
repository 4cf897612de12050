"""`parameters`: a real mistake in the nodes."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.layers import parameters

BUGS = (
    Bug(
        "stacked_weights_named_in_another_order",
        "weights are loaded by name into the wrong thirds of the array that holds queries', keys' and values'",
        "litgpt#1013",
        "trf_blocks.0.att.keys",
        ("forward", "gradients"),
        (
            Change(
                "layers.parameters:StackedAttention.children",
                '"W_key": self.W_key, "W_value": self.W_value',
                '"W_key": self.W_value, "W_value": self.W_key',
            ),
        ),
    ),
)

RECORD = BugsOnly(parameters, "the nodes hold arrays and compute nothing", BUGS)
