"""`quantized`: real mistakes in it."""

from numpygpt.adapt import quantized
from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly

BUGS = (
    Bug(
        "quantized_without_biases",
        "the quantized projections lose their biases",
        "no public report known",
        "made.quantized.logits",
        ("quantizing", "quantized_gradients"),
        (Change("adapt.quantized:quantize", "p.QuantizedLinear(weight, base.bias)", "p.QuantizedLinear(weight)"),),
    ),
    Bug(
        "quantized_beyond_its_targets",
        "all projections of the blocks are quantized, whatever the targets are",
        "no public report known",
        "made.quantized.logits",
        ("quantizing", "quantized_gradients"),
        (
            Change(
                "adapt.quantized:quantize",
                "if projection not in names:",
                "if not projection.startswith('trf_blocks.'):",
            ),
        ),
    ),
    Bug(
        "quantized_without_adapters",
        "the paths beside a projection are gone when it is quantized",
        "no public report known",
        "made.adapted.d_tok_emb.weight",
        ("quantizing", "quantized_gradients"),
        (Change("adapt.quantized:quantize", "return with_base(node, ", "return ("),),
    ),
    Bug(
        "quantized_tied_head",
        "a tied head is quantized, and the embedding that it was tied to goes on as a matrix of its own",
        "no public report known",
        "made.tied_head_refused",
        ("quantizing",),
        (Change("adapt.quantized:_refuse", "if model.config.tie_weights and", "if False and"),),
    ),
    Bug(
        "dequantized_is_trained",
        "matrices that are whole again are trained",
        "no public report known",
        "made.whole.d_trf_blocks.0.att.W_value.weight",
        ("quantizing", "quantized_gradients"),
        (Change("adapt.quantized:dequantize", "frozen=model.frozen | weights", "frozen=model.frozen"),),
    ),
)

RECORD = BugsOnly(quantized, "it makes models of models", BUGS)
