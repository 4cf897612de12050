"""`projection`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Only, Source, at_random
from numpygpt.layers import parameters as p
from numpygpt.layers import projection


def draw(source: Source) -> Call:
    """Draw a node with a bias or without, with any of its leaves trained."""
    outputs, inputs = source.size(6), source.size(6)
    x = source.normal(*source.rows(), inputs)
    node = p.Linear(source.normal(outputs, inputs), source.normal(outputs) if source.yes() else None)
    return Call({"x": x, "parameters": node}, {"wants_x": not source.yes(), "trained": source.trained(node)})


def _call(source: Source) -> Call:
    node = p.Linear(source.normal(7, 12), source.normal(7))
    return Call({"x": source.normal(2, 5, 12), "parameters": node})


def complex_step(source: Source) -> Mapping[str, Call]:
    """All leaves trained, or the bias alone."""
    call = _call(source)
    return {"": call, "bias alone": call._replace(options={"trained": Only({"bias"})})}


SPECIAL = {
    "nothing is trained, and x has no gradient": _call(at_random(0))._replace(
        options={"trained": Only(), "wants_x": False}
    )
}

BUGS = (
    Bug(
        "frozen_leaf_gets_a_gradient",
        "the gradient of a frozen parameter is computed like any other, and an optimizer moves it",
        "fairseq#4702",
        "frozen.d_out_head.weight",
        ("frozen",),
        (
            Change(
                "layers.projection:forward",
                'wanted(trained, "weight", "bias", x=wants_x)',
                'wanted(everything, "weight", "bias", x=wants_x)',
            ),
        ),
    ),
)

RECORD = Record(projection, draw, SPECIAL, complex_step, BUGS)
