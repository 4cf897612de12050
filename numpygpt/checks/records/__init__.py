"""The records of the operations, a file for each, and the bugs that are planted in each.

`RECORDS` has the records by name. The record of a module that is not an operation (an optimizer, a decoder) has only
bugs.

`BUGS` has all planted bugs by name (`numpygpt.checks.planting`). `first_wrong` of a bug names the first tensor that
differs. The order is: conversations, pairs, batches and packed rows of token ids ("chatml.targets", "rows.visible");
loaded weights; activations of a training step, its loss, and its gradients as the backward
yields them; loss and gradients of micro-batches ("micro_batches."), the clipped gradients ("clipped."), the optimizer's
moments and parameters ("step1.", "copied.", "groups."); gradients of recomputed blocks ("recomputed."); a step that
trains a few leaves ("frozen."); a step on several documents in a row ("packed."); a step in which each token sees all
("all_seen."); a step of adapters, and what they compute when they are merged, merged twice and unmerged ("adapted.",
"merged.", "merged_twice.", "unmerged.", "merged_base.", "fresh."); flash attention ("flash.", and "flash_masked."
under a mask); evaluation, decoding, and data; the other optimizers' moments and parameters ("sgd.step1.",
"muon.step2."), and the schedules ("schedules."); numbers of short formats ("bf16.rounded"), then codes, constants and
values of quantized arrays, and a product with each ("whole_blocks.nf4.3.codes"); a step in bf16 by each of autocast's
tables, its micro-batches and the weights after it ("bf16_cuda.", "bf16_cpu."); a clipped step with a scale of the loss
("fp16."); one whose gradients overflow ("overflow."); models that are frozen or quantized, which bases an adapter fits,
and an optimizer with its moments on the disk ("made.", "on_disk."); models with more tokens ("resized."); outputs and
gradients of the operations and objectives that the model itself does not use ("operations.dpo.d_chosen"), and
advantages ("advantages.whitened"); losses and gradients of tuning, and answers that are drawn ("tuned.", "drawn.",
"grouped.", "valued.", "best."); what the worked application makes ("text2sql."). It is "none" for a bug that shows only
at extreme values or in another dtype.
`properties` are the kinds of checks that see the bug:

    forward        activations equal PyTorch's in float64
    gradients      gradients equal PyTorch's in float64, present and of the right shape
    complex_step   gradients equal complex step's for random cotangents
    frozen         what is trained has the gradient of full training, and nothing else has one
    recomputation  recomputed blocks give the same gradients, bit for bit
    causality      an output does not depend on later tokens, bit for bit, also at scores of 1e5 and with NaN in the
                   future; if each token may see all, it does depend on them
    masks          attention under any mask equals PyTorch's, forward and backward; a query that sees no key gives 0
    packing        several documents in one row give what each gives alone, forward and backward
    padding        prompts of several lengths in one batch give what each gives alone
    cache          decoding with a cache equals the full forward, a batch equals its rows, one call does not affect the
                   next
    tiles          flash attention, in tiles, equals attention, forward and backward
    evaluation     evaluation has no dropout, and training has it before and after an evaluation
    optimizer      AdamW's parameters and moments equal PyTorch's over several steps, with decay, groups, clipping and
                   |g| near eps
    closed_form    AdamW's first step, its decay without a gradient and clipping equal their closed forms
    optimizers     the other optimizers' parameters and moments equal PyTorch's over several steps
    by_hand        their first two steps, and the rates of the schedules, equal their closed forms
    in_sequence    the rates of the schedules equal those of PyTorch's schedulers, one after another
    rounding       numbers beside every boundary of a format are rounded as ml_dtypes rounds them, tf32's as by bits
    patterns       all bit patterns of a format are decoded as ml_dtypes decodes them, and survive rounding and encoding
    nearest_number each number of float64 is rounded to the one that is nearest in exact arithmetic, and keeps its sign
    overflow       what is too large becomes infinity, NaN or the largest number, and NaN stays NaN
    bitsandbytes_codes   codes and constants equal those of bitsandbytes
    double_codes   so do those of double quantization
    pytorch_codes  the values of zero-point quantization equal PyTorch's
    codes_by_hand  small arrays have the codes and values that can be written down
    nearest_level  a code is that of the nearest level, and of two as near, of the lower
    equally_frequent     the levels of quantile quantization have equal shares of the values
    errors_bounded no value is off by more than half of a step or gap, and zero stays zero
    blocks_alone   a block has the codes that it would have alone, and any rows are those of the whole
    packed_product       the product with packed weights, and its gradients, equal those with the whole weight
    packed_in_blocks     so do they in several blocks of rows
    packed_rows_alone    an output depends on its row of the weight alone
    packed_complex_step  the gradients equal complex step's
    formats_of_tensors   tensors of a step in bf16 are bf16's numbers where PyTorch's are under autocast, nowhere else
    tables         each operation runs in the format in which PyTorch runs it, by either table
    one_rounding   a product in bf16 and its gradients equal PyTorch's, bit for bit
    reads_rounded_weights   a step in bf16 does not depend on what bf16 lacks of the weights of products, bit for bit
    formats_of_sums   the sum of such gradients is not in bf16
    accumulation   gradients of micro-batches in bf16 are added up in the parameters' dtype
    unscaled       a clipped step does not depend on the scale of the loss, bit for bit
    unscaled_norms the norms that a step reports do not depend on it
    small_updates  an update that bf16 could not hold arrives in the weights
    master_weights the weights after a step in bf16 are those that the optimizer computes, bit for bit
    skipped_steps  a step whose gradients overflow leaves no trace except for the scale
    halved_once    it halves the scale once, and weights and moments are as before
    grad_scaler    the scale goes as that of torch.amp.GradScaler
    copies         a copy of a model and its optimizer, made of both together, is trained as they are
    micro_batches  gradients of micro-batches add up to the full batch's
    purity         nothing passed in is changed, and a second backward gives the same
    invariance     LayerNorm of shifted values is LayerNorm of the values, bit for bit if the shift is exact
    extremes       large scores and means, all targets ignored: right and finite
    dtypes         dtype, rank and memory layout of every result
    weights        asymmetric weights survive a round trip by name; tied weights are one array
    sampling       greedy, top-k and eos are exact
    decoding       sampled and stopped text equals PyTorch's for the same seed, token by token
    data           targets are the inputs one token later
    adapters       adapters' logits and gradients equal PyTorch's in float64, and nothing else has a gradient
    adapters_complex_step   adapters' gradients equal complex step's
    merging        a merged model computes the same, is merged once, and unmerged it is what it was
    adapter_files  an adapter that is written and read again, by either names, computes the same
    adapter_files_of_peft   a folder that peft wrote computes here what it computes there, and ours there what here
    adapters_decoding       adapters and what they are merged into give the full forward's logits token by token
    adapters_purity         adapting a model does not change it, and shares what stays
    adapters_of_bases       an adapter is loaded into its base, also beside another adapter, and into no other model
    freezing       what is not frozen has PyTorch's gradient, and nothing else has one
    frozen_steps   a step of an optimizer moves what is not frozen, and nothing else
    quantizing     the targets alone are quantized, and the model computes what PyTorch's does with the codes' values
    quantized_gradients     what is not quantized has PyTorch's gradient, and the matrices have none
    moments_on_disk         moments in a file are those in memory, bit for bit
    optimizers_on_disk      with them, the parameters and the moments equal PyTorch's
    loader         batches equal PyTorch's for the same seed
    answers_learned         of a conversation, the answers and what ends each are learned, and nothing else
    targets_by_hand         small examples have the targets that can be written down
    texts_by_hand           conversations have the texts that can be written down, and a message stays text
    prompts_begin_examples  a prompt has the tokens with which its example begins
    padding_by_hand         a small padded batch is the one that can be written down
    padded_as_alone         padded examples have the loss and the gradients that they have alone, under any padding
    classified_by_last_token   the last token of a padded text has the logits that it has alone
    packing_by_hand         a small packed row is the one that can be written down
    packed_as_alone         packed examples have the loss and the gradients that they have alone
    rows_fit                each example is in one row, and no row is too full
    pairs_by_hand           both answers of a pair follow one prompt, of which nothing is learned
    pairs_in_batches        a small batch of pairs is the one that can be written down, the chosen ones first
    pairs_from_files        a file gives the pairs of its records, without those whose answers are alike
    old_logits_stay         a larger vocabulary leaves the logits of the old tokens as they are, and a tied head tied
    new_rows_are_means      its new rows are the means of the old ones
    goals_in_pytorch        a goal of tuning has PyTorch's loss and gradients on a model
    goals_in_parts          uneven micro-batches have those of the whole batch, and its weight
    drawn_as_scored         the log-probabilities of drawn tokens are those of a forward over prompt and answer
    rewarded_by_hand        values, advantages and returns are those of loops over each answer's tokens
    groups_by_hand          each token has its answer's advantage among the answers to its prompt
    best_by_hand            of the answers to each prompt, the one of the highest reward is taken
    rows_by_hand            a prompt and its answer are one row, whose targets are the answer's tokens
    operations     the operations of objectives, and objectives, equal their oracles in float64, forward and backward
    operations_complex_step   their gradients equal complex step's
    operations_at_extremes    their special calls are right too, in float64 and in float32
    parts_of_batches          losses and gradients of uneven parts, by the normalizer of the whole, add up to its own
    objectives     losses that can be written down, who is pushed where, what must not count, 0 times infinity
    objectives_of_trl         losses and gradients equal those of trl's trainers
    advantages     advantages equal loops over tokens and answers, and PyTorch's means and deviations
    queries_learned         the targets of a batch of examples are the queries and their ends
    batches_as_examples     it is the batch of the prompts with their answers, as instruction tuning has it
    nothing_leaks           no schema and query of the test is in the training
    wording_decides_nothing    the words of a question do not decide whether it is held out
    judged_by_hand          small queries have the verdicts that can be written down
    judged_by_sqlite        verdicts are those of a comparison by Python's own module
    earned_by_hand          small queries earn what can be written down
    earned_by_sqlite        a query earns by what Python's own module says of its rows
    preferred_by_hand       small pairs of queries can be written down
    preferred_executes      by Python's own module, the preferred query gives the reference's rows, the other does not
    functions_refused       a query that calls another function than the questions need is refused
    functions_asked_for     of the list of all functions, SQLite is told to permit those alone
    advantages_relations      what must hold of them: a mean of 0, what comes from the last token alone, equal rewards
"""

from importlib import import_module
from pkgutil import iter_modules

from numpygpt.checks.planting import Bug
from numpygpt.checks.record import BugsOnly, Record

#: The rooms of the modules, in the order in which their records come.
_ROOMS = (
    "numerics", "ops", "layers", "model", "objectives", "adapt", "training", "tuning", "decoding", "data", "formats",
    "text2sql",
)  # fmt: skip


def _place(record: Record | BugsOnly) -> tuple[int, str]:
    """What the records are sorted by: the room of the module, and its name."""
    return _ROOMS.index(record.module.__name__.split(".")[1]), record.name


def _found() -> list[Record | BugsOnly]:
    """The record of each file in this folder."""
    return [import_module(f"{__name__}.{file.name}").RECORD for file in iter_modules(__path__)]


#: The records by the names of their modules.
RECORDS: dict[str, Record | BugsOnly] = {record.name: record for record in sorted(_found(), key=_place)}

#: The records of operations and layers, which have a forward and a backward.
OPERATIONS: dict[str, Record] = {name: record for name, record in RECORDS.items() if isinstance(record, Record)}

#: The planted bugs by name.
BUGS: dict[str, Bug] = {bug.name: bug for record in RECORDS.values() for bug in record.bugs}

#: Changes that must make no difference: the checks let them pass.
CONTROLS: tuple[Bug, ...] = tuple(control for record in RECORDS.values() for control in record.controls)

#: Real bugs that are not planted, because the model's code has no place for them, and the reason for each.
NOT_PLANTED: dict[str, str] = {
    "int32 index overflow at B x T x V (llm.c#155)": "no index is computed by hand; NumPy's are 64-bit",
    "NaN compares as equal (llm.c's CUDA test)": (
        "a fault of the checks, not of the model: test_comparator.py puts a NaN into every tensor, on either side"
    ),
    "the comparator compares some tensors twice and others never (llm.c#801)": (
        "a fault of the checks: test_comparator.py spoils each tensor in turn and demands that it alone fails"
    ),
    "a tolerance scaled by the array's size passes anything large (JAX's check_grads)": (
        "a fault of the checks: test_comparator.py puts the same relative error into a small and a large tensor"
    ),
    "a zero gradient passes because the cotangent annihilates it (softmax, LayerNorm under a sum)": (
        "a fault of the checks: test_own_gradients.py demands that such a cotangent gives no verdict"
    ),
}
