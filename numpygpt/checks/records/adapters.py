"""`adapters`: real mistakes in it."""

from numpygpt.adapt import adapters
from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly

BUGS = (
    Bug(
        "lora_scaled_by_alpha",
        "the paths are multiplied by α, not by α/R; nobody sees it where α = R",
        "rasbt#821",
        "adapted.trf_blocks.0.att.queries",
        ("adapters", "merging"),
        (Change("adapt.adapters:add_lora", "SCALES[scaling](alpha, rank)", "SCALES['book'](alpha, rank)"),),
    ),
    Bug(
        "lora_merge_unscaled",
        "the merge adds B @ A without its scale",
        "peft#2489",
        "merged.trf_blocks.0.att.queries",
        ("merging", "adapters_decoding"),
        (Change("adapt.adapters:_deltas", "scale * (", "1 * ("),),
    ),
    Bug(
        "lora_merged_twice",
        "merging a merged model adds the product once more",
        "peft#3774",
        "merged_twice.logits",
        ("merging", "adapters_purity"),
        (
            Change(
                "adapt.adapters:merge_lora",
                "not isinstance(node, p.LoRA) or node.merged",
                "not isinstance(node, p.LoRA)",
            ),
        ),
    ),
    Bug(
        "lora_unmerge_adds",
        "taking the product out of the weight adds it",
        "no public report known",
        "unmerged.trf_blocks.0.att.queries",
        ("merging", "adapters_purity"),
        (Change("adapt.adapters:unmerge_lora", "weight -= delta", "weight += delta"),),
    ),
    Bug(
        "lora_merge_changes_the_shared_weight",
        "the product is added to the array that the model without adapters has too",
        "no public report known",
        "merged_base.logits",
        ("merging", "adapters_purity"),
        (Change("adapt.adapters:whole_weight", "projection.weight.copy()", "projection.weight"),),
    ),
    Bug(
        "lora_base_is_trained",
        "the base is not frozen, and the optimizer moves it",
        "no public report known",
        "fresh.d_tok_emb.weight",
        ("adapters",),
        (
            Change("adapt.adapters:add_lora", "frozen=model.named_parameters()", "frozen=()"),
        ),
    ),
    Bug(
        "lora_one_adapter_forgotten_in_the_merge",
        "only the first of several adapters is merged",
        "no public report known",
        "merged.trf_blocks.0.att.queries",
        ("merging", "adapters_decoding"),
        (Change("adapt.adapters:_deltas", "node.scales.items()", "list(node.scales.items())[:1]"),),
    ),
)

RECORD = BugsOnly(adapters, "it makes models of models", BUGS)
