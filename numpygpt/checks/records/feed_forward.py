"""`feed_forward`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Only, Source, at_random, random_block
from numpygpt.layers import feed_forward


def draw(source: Source) -> Call:
    """Draw the feed-forward network of a block, with any of its leaves trained."""
    block, _ = source.block()
    x = source.normal(*source.rows(), len(block.norm1.scale))
    options = {"activation": source.activation(), "wants_x": not source.yes(), "trained": source.trained(block.ff)}
    return Call({"x": x, "parameters": block.ff}, options)


def _call(source: Source) -> Call:
    return Call({"x": source.normal(2, 5, 12), "parameters": random_block(source, 3, 4).ff})


def complex_step(source: Source) -> Mapping[str, Call]:
    """All leaves trained, or one on either side of GELU; and GELU's exact form in a network without biases."""
    call = _call(source)
    some = Only({"layers.0.bias", "layers.2.weight"})
    without_biases = {"x": source.normal(2, 5, 6), "parameters": random_block(source, 3, 2, biases=False).ff}
    return {
        "": call,
        "some trained": call._replace(options={"trained": some, "wants_x": False}),
        "exact GELU, no biases": Call(without_biases, {"activation": "gelu_erf"}),
    }


SPECIAL = {
    "the last bias alone": _call(at_random(0))._replace(
        options={"trained": Only({"layers.2.bias"}), "wants_x": False}
    ),
    "x alone": _call(at_random(1))._replace(options={"trained": Only()}),
    "exact GELU": _call(at_random(2))._replace(options={"activation": "gelu_erf"}),
}

BUGS = (
    Bug(
        "activation_without_backward",
        "the gradient goes past the activation",
        "no public report known",
        "d_trf_blocks.1.ff.layers.0",
        ("gradients", "complex_step"),
        (
            Change(
                "layers.feed_forward:backward",
                "casting.backward(ACTIVATIONS[saved.activation], d_activated, saved.gelu).x",
                "d_activated",
            ),
        ),
    ),
    Bug(
        "activation_forgotten_in_the_backward",
        "the backward has the tanh form's slope, whichever form the forward had",
        "no public report known",
        "d_trf_blocks.1.ff.layers.0",
        ("gradients", "complex_step"),
        (Change("layers.feed_forward:backward", "ACTIVATIONS[saved.activation]", "gelu"),),
    ),
)

RECORD = Record(feed_forward, draw, SPECIAL, complex_step, BUGS)
