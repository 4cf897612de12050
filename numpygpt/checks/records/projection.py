"""`projection`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.source import Only, Source, at_random
from numpygpt.layers import parameters as p
from numpygpt.layers import projection
from numpygpt.numerics.schemes import quantize


def draw(source: Source) -> Call:
    """Draw a node with a bias or without, with any number of paths of low rank, and any of its leaves trained."""
    outputs, inputs = source.size(6), source.size(6)
    x = source.normal(*source.rows(), inputs)
    bias = source.normal(outputs) if source.yes() else None
    base: p.Linear | p.QuantizedLinear = p.Linear(source.normal(outputs, inputs), bias)
    if source.yes():
        base = p.QuantizedLinear(quantize(source.normal(outputs, inputs), "nf4", 5), bias)
    node = _with_paths(source, base, x.shape, source.size(2)) if source.yes() else base
    return Call({"x": x, "parameters": node}, {"wants_x": not source.yes(), "trained": source.trained(node)})


def _with_paths(source: Source, base: p.Linear | p.QuantizedLinear, shape: tuple[int, ...], count: int) -> p.LoRA:
    names = ("default", "second")[:count]
    ranks = {name: source.choose.integer(1, min(base.weight.shape)) for name in names}
    rates = {name: source.drop_rate() for name in names}
    masks = {name: source.keep(shape, rate) for name, rate in rates.items()}
    outputs, inputs = base.weight.shape
    return p.LoRA(
        base,
        {name: p.Linear(source.normal(rank, inputs)) for name, rank in ranks.items()},
        {name: p.Linear(source.normal(outputs, rank)) for name, rank in ranks.items()},
        scales={name: 2 / rank for name, rank in ranks.items()},
        drop_rates=rates,
        keep={name: mask for name, mask in masks.items() if mask is not None},
        merged=source.yes(),
    )


def _call(source: Source) -> Call:
    node = p.Linear(source.normal(7, 12), source.normal(7))
    return Call({"x": source.normal(2, 5, 12), "parameters": node})


def complex_step(source: Source) -> Mapping[str, Call]:
    """All leaves trained, or the bias alone; and two paths of low rank with dropout."""
    call = _call(source)
    node = call.arguments["parameters"]
    paths = p.LoRA(
        node,
        {"default": p.Linear(source.normal(3, 12)), "second": p.Linear(source.normal(1, 12))},
        {"default": p.Linear(source.normal(7, 3)), "second": p.Linear(source.normal(7, 1))},
        scales={"default": 2.5, "second": 0.5},
        drop_rates={"default": 0.3, "second": 0.0},
        keep={"default": source.rng.random((2, 5, 12)) < 0.7},
    )
    quantized = paths._replace(base=p.QuantizedLinear(quantize(source.normal(7, 12), "nf4", 5), node.bias))
    return {
        "": call,
        "quantized": call._replace(arguments={**call.arguments, "parameters": quantized}),
        "bias alone": call._replace(options={"trained": Only({"bias"})}),
        "low rank": call._replace(arguments={**call.arguments, "parameters": paths}),
    }


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
    Bug(
        "lora_paths_give_x_no_gradient",
        "the gradient of x comes through the base alone",
        "no public report known",
        "adapted.d_final_norm",
        ("adapters", "adapters_complex_step"),
        (Change("layers.projection:_through_paths", "if d_dropped is not None:", "if False:"),),
    ),
    Bug(
        "lora_applied_after_it_was_merged",
        "a merged adapter is applied once more, beside the weight that holds it",
        "peft#3774",
        "merged.trf_blocks.0.att.queries",
        ("merging", "adapters_decoding"),
        (Change("layers.projection:forward", "case p.LoRA(base, merged=True):", "case p.LoRA(base, merged=2):"),),
    ),
)

RECORD = Record(projection, draw, SPECIAL, complex_step, BUGS)
