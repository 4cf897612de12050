"""Planted bugs: real mistakes of hand-written and ported GPTs, each a small named change of the real code.

    with planted(BUGS["embedding_loses_repeats"]):
        model.loss_and_grads(inputs, targets)          # now with the bug

A bug is planted for the length of the `with` block and gone after it. The tests plant every one and demand
that it is caught; an experimenter plants one to see how small an error a check can see; a porter compares the
symptom with their own.

`first_wrong` names the first tensor that differs, in the order: loaded weights, activations of a training step, loss,
gradients as the backward yields them, the optimizer's moments and parameters, then flash attention's ("flash."),
evaluation, decoding and data; "none" for a bug that shows at numbers out of the ordinary only. `properties` are the
kinds of checks that see it:

    forward       activations equal PyTorch's in float64
    gradients     gradients equal PyTorch's in float64, present and of the right shape
    complex_step  gradients equal complex step's for random cotangents
    causality     an output does not depend on later tokens, bit for bit, also at scores of 1e5 and with NaN
                  in the future
    cache         decoding with a cache equals the full forward, a batch equals its rows, one call does not affect
                  the next
    tiles         flash attention, in tiles, equals attention, forward and backward
    evaluation    evaluation has no dropout, and training has it before and after an evaluation
    optimizer     AdamW's parameters and moments equal PyTorch's over several steps, with decay, clipping and |g|
                  near eps
    closed_form   AdamW's first step, its decay without a gradient and clipping equal their closed forms
    micro_batches gradients of micro-batches add up to the full batch's
    purity        nothing passed in is changed, and a second backward gives the same
    invariance    a norm of shifted numbers is the norm of the numbers, bit for bit where the shift is exact
    extremes      large scores and means, all targets ignored: right and finite
    dtypes        dtype, rank and memory layout of every result
    weights       asymmetric weights survive a round trip by name; tied weights are one array
    sampling      greedy, top-k and eos are exact
    decoding      sampled and stopped text equals PyTorch's for the same seed, token by token
    data          targets are the inputs one token later
    loader        batches equal PyTorch's for the same seed
"""

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any, NamedTuple


class Change(NamedTuple):
    """Replace `original`, which stands exactly once in the source of a function, by `changed`.

    function   "module:name" or "module:Class.name", inside numpygpt
    """

    function: str
    original: str
    changed: str


class Bug(NamedTuple):
    """A mistake, where it was met, what goes wrong first and which checks see it."""

    name: str
    what: str
    seen_at: str
    first_wrong: str
    properties: tuple[str, ...]
    changes: tuple[Change, ...]


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """The bug is in the code inside the block.

    Not for several threads at once: the functions themselves are changed.
    """
    functions = {change.function: _function(change.function) for change in bug.changes}
    sound = {path: function.__code__ for path, function in functions.items()}
    changed = {
        path: _changed_code(function, [change for change in bug.changes if change.function == path])
        for path, function in functions.items()
    }
    try:
        for path, function in functions.items():
            function.__code__ = changed[path]  # whoever holds the function, under whatever name, gets the change
        yield
    finally:
        for path, function in functions.items():
            function.__code__ = sound[path]


def _changed_code(function: FunctionType, changes: list[Change]) -> CodeType:
    source = textwrap.dedent(inspect.getsource(function))
    for change in changes:
        if source.count(change.original) != 1:
            raise LookupError(
                f"{change.function} has {source.count(change.original)} times, not once: {change.original!r}"
            )
        source = source.replace(change.original, change.changed)
    definitions: dict[str, Any] = {}
    exec(source, function.__globals__, definitions)
    changed: FunctionType = definitions[function.__name__]
    return changed.__code__


def _function(path: str) -> FunctionType:
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(f"numpygpt.{module}")
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    found = inspect.unwrap(getattr(found, "__func__", found))
    assert isinstance(found, FunctionType), path
    return found


_ATTENTION = "ops.attention:forward"
_MASK = "np.copyto(attn_scores, -np.inf, where=unseen)"
_SCALE = "1 / math.sqrt(K)"
_FLASH = "ops.flash_attention:forward"
_BLOCK = "layers.transformer_block:forward"
_HEADS = "layers.multi_head_attention"
_VARIANCE = "variance = (centered * centered).mean(axis=-1, keepdims=True)"
_ERF = "np.vectorize(math.erf, otypes=[float])(x.real / math.sqrt(2))"
_ERF_SLOPE = "x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)"
_GELU_SLOPE = "0.5 * x * (1 - t * t) * C * (1 + 3 * A * x * x)"

_CATALOGUE = (
    # Embedding and positions
    Bug(
        "embedding_loses_repeats",
        "dW[ids] += dy: of several equal ids one gives its gradient",
        "no public report known",
        "d_tok_emb.weight",
        ("gradients", "complex_step"),
        (
            Change(
                "ops.embedding:backward",
                "d_weight[present] = np.add.reduceat(d_rows[order], first, axis=0)",
                "d_weight[saved.ids.reshape(-1)] += d_rows",
            ),
        ),
    ),
    Bug(
        "position_restarts_with_cache",
        "with a cache, the new token gets position 0",
        "mlx-lm#93",
        "decode.logits",
        ("cache", "sampling"),
        (
            Change(
                "model.body:forward",
                "np.arange(T) + (past[0].length if past else 0)",
                "np.arange(T)",
            ),
        ),
    ),
    Bug(
        "position_gradient_not_summed",
        "the gradient of what a batch shares is not summed over the batch",
        "pytorch#13669",
        "d_pos_emb",
        ("gradients", "complex_step"),
        (Change("model.body:backward", "d_embedded.sum(axis=0)", "d_embedded[0]"),),
    ),
    # Tied weights
    Bug(
        "tied_weight_stepped_twice",
        "the optimizer sees a tied weight under both its names",
        "entrenar#314",
        "clipped.tok_emb.weight",
        ("optimizer", "closed_form"),
        (
            Change("training.adamw:AdamW.__init__", "model.named_parameters()", "model.state_dict()"),
            Change(
                "model.gpt:GPTModel.backward",
                'gradients["tok_emb.weight"] += gradients.pop("out_head.weight")',
                'gradients["tok_emb.weight"] += gradients["out_head.weight"]\n'
                '        gradients["out_head.weight"] = gradients["tok_emb.weight"]',
            ),
        ),
    ),
    Bug(
        "tie_by_copy",
        "the head starts as a copy of the embedding, so a tie in name only",
        "rasbt/LLMs-from-scratch#822",
        "loaded.out_head.weight",
        ("weights", "forward"),
        (
            Change(
                "model.initialization:allocate",
                "Linear(tok_emb if config.tie_weights else empty(V, D))",
                "Linear(tok_emb.copy() if config.tie_weights else empty(V, D))",
            ),
        ),
    ),
    Bug(
        "tied_head_gradient_forgotten",
        "with tied weights only the embedding's path reaches the gradient",
        "no public report known",
        "d_tok_emb.weight",
        ("gradients", "complex_step"),
        (Change("model.gpt:GPTModel.backward", 'gradients["tok_emb.weight"] += gradients.pop', "gradients.pop"),),
    ),
    # Attention
    Bug(
        "no_causal_mask",
        "every position reads every other",
        "entrenar#310",
        "trf_blocks.0.att.attn_scores",
        ("causality", "forward"),
        (Change(_ATTENTION, _MASK, "pass"),),
    ),
    Bug(
        "mask_dropped_with_dropout",
        "the causal mask is there only while dropout is not",
        "keras#23038",
        "trf_blocks.0.att.attn_scores",
        ("causality", "forward"),
        (Change(_ATTENTION, _MASK, f"{_MASK} if keep is None else None"),),
    ),
    Bug(
        "mask_inverted",
        "the mask hides the past and shows the future",
        "cs249r_book#1785",
        "trf_blocks.0.att.attn_scores",
        ("causality", "forward"),
        (Change(_ATTENTION, _MASK, _MASK.replace("where=", "where=~")),),
    ),
    Bug(
        "mask_of_minus_10000",
        "-1e4 for -inf: a good training loss, and a leak at extreme scores",
        "transformers#15199, #17306",
        "trf_blocks.0.att.attn_scores",
        ("causality", "forward"),
        (Change(_ATTENTION, _MASK, _MASK.replace("-np.inf", "-1e4")),),
    ),
    Bug(
        "mask_hides_own_position",
        "a position may not read itself, so the first reads nothing",
        "pytorch#41508",
        "trf_blocks.0.att.attn_scores",
        ("forward", "gradients"),
        (Change("ops.visible:hidden", "keys.stop) > past", "keys.stop) >= past"),),
    ),
    Bug(
        "mask_is_added",
        "a mask that is added lets NaN in a masked slot through",
        "pytorch#101967",
        "none",
        ("causality",),
        (Change(_ATTENTION, _MASK, "attn_scores += np.where(unseen, -np.inf, 0)"),),
    ),
    Bug(
        "scale_by_emb_dim",
        "scores divided by sqrt(D) for sqrt(K): the loss moves by 3e-6",
        "dfdx#171",
        "trf_blocks.0.att.attn_scores",
        ("forward", "gradients"),
        (
            Change(_ATTENTION, _SCALE, "1 / math.sqrt(queries.shape[1] * K)"),
            Change(
                "ops.attention:backward",
                "1 / math.sqrt(saved.queries.shape[-1])",
                "1 / math.sqrt(saved.queries.shape[1] * saved.queries.shape[-1])",
            ),
        ),
    ),
    Bug(
        "scale_missing_with_cache",
        "one of two paths forgets the scale",
        "mlc-llm#3426",
        "decode.logits",
        ("cache",),
        (Change(_ATTENTION, _SCALE, f"({_SCALE} if T == S else 1)"),),
    ),
    Bug(
        "heads_merged_without_transpose",
        "heads merged by a reshape alone; training still falls",
        "no public report known",
        "trf_blocks.0.att.context_vec",
        ("forward", "complex_step"),
        (Change(f"{_HEADS}:merge_heads", "x.swapaxes(1, 2).reshape", "x.reshape"),),
    ),
    Bug(
        "heads_interleaved",
        "features of the heads interleaved in the merge: invisible with one head",
        "no public report known",
        "trf_blocks.0.att.context_vec",
        ("forward", "complex_step"),
        (Change(f"{_HEADS}:merge_heads", "x.swapaxes(1, 2)", "x.transpose(0, 2, 3, 1)"),),
    ),
    Bug(
        "heads_split_without_transpose",
        "heads split by a reshape alone, so that a head is a stretch of the text",
        "FuxiCTR#30",
        "trf_blocks.0.att.queries",
        ("forward", "causality"),
        (
            Change(
                f"{_HEADS}:split_heads",
                "x.reshape(*x.shape[:2], n_heads, -1).swapaxes(1, 2)",
                "x.reshape(len(x), n_heads, x.shape[1], -1)",
            ),
        ),
    ),
    Bug(
        "queries_keys_values_untrained",
        "queries, keys and values get no gradient",
        "aprender#2203",
        "d_trf_blocks.1.norm1",
        ("gradients", "complex_step"),
        (Change(f"{_HEADS}:_through_one_product", "projection.backward(d_qkv,", "projection.backward(0 * d_qkv,"),),
    ),
    # Flash attention
    Bug(
        "flash_context_does_not_shrink",
        "a larger score comes, and what was read before keeps its old weight",
        "no public report known",
        "flash.context",
        ("tiles", "complex_step"),
        (Change(_FLASH, "            y *= shrink\n", ""),),
    ),
    Bug(
        "flash_total_does_not_shrink",
        "a larger score comes, and the sum of the exponentials stays under the old one",
        "no public report known",
        "flash.context",
        ("tiles", "complex_step"),
        (Change(_FLASH, "        total *= shrink\n", ""),),
    ),
    Bug(
        "flash_row_sum_of_a_tile",
        "the softmax's gradient subtracts the sum over a tile of keys, not over all of them",
        "no public report known",
        "flash.d_queries",
        ("tiles", "complex_step"),
        (
            Change(
                "ops.flash_attention:backward",
                "d_scores -= g_dot_y",
                "d_scores -= (e * d_scores).sum(axis=-1, keepdims=True)",
            ),
        ),
    ),
    Bug(
        "flash_values_without_dropout",
        "the weights are formed again for the values' gradient, the mask is not applied again",
        "no public report known",
        "flash.d_values",
        ("tiles", "complex_step"),
        (Change("ops.flash_attention:backward", "dropped.mT @ g", "e.mT @ g"),),
    ),
    Bug(
        "flash_mask_from_the_upper_left",
        "fewer queries than keys, and the causal mask starts at the first key: what FlashAttention did before 2.1",
        "flash-attention, changelog of 2.1",
        "flash.context",
        ("tiles", "cache"),
        (Change(_FLASH, "hidden(visible, t, s, past)", "hidden(visible, t, s, 0)"),),
    ),
    # The cache
    Bug(
        "cache_overwritten_by_another_continuation",
        "two continuations of one past write to the same place",
        "ours, met while the cache was written",
        "decode.continued_twice",
        ("cache", "purity"),
        (Change("layers.key_value_cache:KeyValueCache.extended", "buffer.used != start or stop", "stop"),),
    ),
    Bug(
        "cache_rows_not_reordered",
        "a beam search chooses its beams anew, and their caches stay as they were",
        "ours, met while the cache was written",
        "decode.of_swapped_rows",
        ("cache",),
        (
            Change(
                "layers.key_value_cache:KeyValueCache._copied",
                "self.buffer.keys_values[:, rows, :, : self.length]",
                "self.buffer.keys_values[:, :, :, : self.length]",
            ),
        ),
    ),
    # Softmax, dropout, linear
    Bug(
        "softmax_without_backward",
        "softmax passes its gradient through; a cotangent of ones sees nothing",
        "candle#3569",
        "d_trf_blocks.1.att.attn_scores",
        ("gradients", "complex_step"),
        (Change("ops.softmax:backward", "d_x -= y * d_x.sum(axis=-1, keepdims=True)", "d_x[...] = d_y"),),
    ),
    Bug(
        "dropout_alive_in_evaluation",
        "evaluation drops elements",
        "pytorch#124464",
        "evaluation.logits",
        ("evaluation", "cache"),
        (
            Change(
                "model.gpt:GPTModel.__call__",
                "self.forward(in_idx,",
                "self.forward(in_idx, masks=self.draw_dropout_masks(np.random.default_rng(), *np.shape(in_idx)),",
            ),
        ),
    ),
    Bug(
        "evaluation_ends_dropout",
        "an evaluation turns dropout off for good",
        "Megatron-LM#411",
        "after_evaluation.drop_emb",
        ("evaluation", "purity"),
        (
            Change(
                "model.gpt:GPTModel.__call__",
                "return logits",
                "self.config = GPTConfig.of({**self.config.to_dict(), 'drop_rate': 0.0})\n    return logits",
            ),
        ),
    ),
    Bug(
        "dropout_gradient_scaled_by_p",
        "the backward scales by the rate for its complement",
        "apex#816",
        "d_trf_blocks.1.ff.layers.2",
        ("gradients", "complex_step"),
        (
            Change(
                "ops.dropout:backward",
                "_kept_and_scaled(d_y, *saved)",
                "_kept_and_scaled(d_y, saved.keep, 1 - saved.drop_rate if saved.drop_rate else 0.0)",
            ),
        ),
    ),
    Bug(
        "dropout_gradient_without_mask",
        "the backward scales, but lets every element through",
        "numpy-ml's wrappers",
        "d_trf_blocks.1.ff.layers.2",
        ("gradients", "complex_step"),
        (
            Change(
                "ops.dropout:backward",
                "_kept_and_scaled(d_y, *saved)",
                "d_y if saved.keep is None else d_y / (1 - saved.drop_rate)",
            ),
        ),
    ),
    Bug(
        "dropout_mask_reused",
        "one mask at two sites of a block",
        "no public report known",
        "trf_blocks.0.drop_ff",
        ("forward", "gradients"),
        (Change(_BLOCK, "masks.after_feed_forward", "masks.after_attention"),),
    ),
    Bug(
        "dropout_mask_of_another_site",
        "the backward takes the mask that the other site left on the module",
        "no public report known",
        "d_trf_blocks.1.ff.layers.2",
        ("gradients", "complex_step"),
        (Change("layers.transformer_block:backward", "saved.drop_ff", "saved.drop_att"),),
    ),
    Bug(
        "bias_gradient_averaged",
        "the bias gets the mean over rows for the sum",
        "no public report known",
        "d_trf_blocks.1.ff.layers.2.bias",
        ("gradients", "complex_step"),
        (Change("ops.linear:backward", "d_rows.sum(axis=0)", "d_rows.mean(axis=0)"),),
    ),
    # LayerNorm
    Bug(
        "unbiased_variance",
        "the variance divides by D - 1",
        "LBANN#2024",
        "trf_blocks.0.norm1",
        ("forward", "complex_step"),
        (
            Change(
                "ops.layer_norm:forward",
                _VARIANCE,
                "variance = (centered * centered).sum(axis=-1, keepdims=True) / (x.shape[-1] - 1)",
            ),
        ),
    ),
    Bug(
        "eps_outside_root",
        "eps is added to the standard deviation",
        "BERT-pytorch#30",
        "trf_blocks.0.norm1",
        ("forward", "complex_step"),
        (Change("ops.layer_norm:forward", "np.sqrt(variance + eps)", "np.sqrt(variance) + eps"),),
    ),
    Bug(
        "variance_squared",
        "(variance + eps) ** 2 for the root",
        "TPlinker#37",
        "trf_blocks.0.norm1",
        ("forward", "complex_step"),
        (Change("ops.layer_norm:forward", "np.sqrt(variance + eps)", "(variance + eps) ** 2"),),
    ),
    Bug(
        "one_pass_variance",
        "E[x²] - E[x]²: nothing left where the mean is 2000",
        "pytorch#51102",
        "none",
        ("extremes", "invariance"),
        (
            Change(
                "ops.layer_norm:forward",
                _VARIANCE,
                "variance = (x * x).mean(axis=-1, keepdims=True) - x.mean(axis=-1, keepdims=True) ** 2",
            ),
        ),
    ),
    Bug(
        "norm_gradient_of_rank_2",
        "scale's gradient is summed over the first axis, whatever the rank",
        "FlagGems#5392",
        "d_final_norm.shift",
        ("gradients", "dtypes"),
        (
            Change(
                "ops.layer_norm:backward",
                "over_rows(block, d_y, normalized, inv_std, d_x)",
                "[block(d_y, normalized, inv_std, d_x)]",
            ),
        ),
    ),
    Bug(
        "variance_gradient_without_eps",
        "the backward has 1 / var for 1 / (var + eps)",
        "Chainer, for a year under a tolerance of 1e-2",
        "d_trf_blocks.1",
        ("complex_step", "gradients"),
        (
            Change(
                "ops.layer_norm:backward",
                "normalized * along\n",
                "normalized * along / (1 - 1e-5 * inv_std * inv_std)\n",
            ),
        ),
    ),
    Bug(
        "norm_untrained",
        "scale and shift get no gradient",
        "no public report known",
        "d_final_norm.shift",
        ("gradients", "complex_step"),
        (
            Change(
                "ops.layer_norm:backward",
                "_total(d_scales), _total(d_shifts)",
                "0 * _total(d_scales), 0 * _total(d_shifts)",
            ),
        ),
    ),
    Bug(
        "norm_gradients_assigned",
        "over micro-batches the norms' gradients are assigned, not added",
        "llm.c#408",
        "micro_batches.trf_blocks.0.norm1.scale",
        ("micro_batches", "optimizer"),
        (Change("training.step:loss_and_grads_of", "if name in total:", 'if name in total and "norm" not in name:'),),
    ),
    Bug(
        "post_norm",
        "attention reads x, and the norm comes after the sum",
        "no public report known",
        "trf_blocks.0.norm1",
        ("forward", "complex_step"),
        (
            Change(
                _BLOCK,
                "a, norm1 = layer_norm.forward(  # (1)\n"
                '        x, *parameters.norm1, wanted=wanted(norm1_trained, "scale", "shift", x=wants_x)\n'
                "    )",
                "a = x",
            ),
            Change(_BLOCK, "r = x + dropped", "r, norm1 = layer_norm.forward(x + dropped, *parameters.norm1)"),
        ),
    ),
    Bug(
        "residual_in_place",
        "the residual is added into the block's input",
        "nanoGPT#72",
        "none",
        ("purity",),
        (Change(_BLOCK, "r = x + dropped", "x += dropped\n    r = x"),),
    ),
    # GELU
    Bug(
        "erf_gelu",
        "the erf form, forward and backward, for the tanh form",
        "pocket-tts#278, nanoGPT#129",
        "trf_blocks.0.ff.layers.1",
        ("forward", "gradients"),
        (
            Change("ops.gelu:forward", "np.tanh(u, out=t)", f"t[...] = {_ERF}"),
            Change("ops.gelu:backward", _GELU_SLOPE, _ERF_SLOPE),
        ),
    ),
    Bug(
        "erf_slope_under_tanh",
        "the erf form's derivative under a tanh forward; passes a fast gradient check",
        "numpy-ml",
        "d_trf_blocks.1.ff.layers.0",
        ("complex_step", "gradients"),
        (Change("ops.gelu:backward", _GELU_SLOPE, _ERF_SLOPE),),
    ),
    Bug(
        "six_digit_constants",
        "sqrt(2/π) cut to six digits in the backward",
        "thinc, and a tolerance widened to let it pass",
        "d_trf_blocks.1.ff.layers.0",
        ("complex_step", "gradients"),
        (Change("ops.gelu:backward", "* C *", "* 0.797884 *"),),
    ),
    Bug(
        "gelu_without_x",
        "(1 + tanh) / 2 without its factor x",
        "tfjs#8224",
        "trf_blocks.0.ff.layers.1",
        ("forward", "complex_step"),
        (Change("ops.gelu:forward", "0.5 * x, 1 + t", "0.5, 1 + t"),),
    ),
    # Loss and data
    Bug(
        "labels_not_shifted",
        "the targets are the inputs",
        "transformers#404",
        "data.target_ids",
        ("data", "loader"),
        (Change("data.windows:GPTDatasetV1.__init__", "token_ids[1:]", "token_ids[:-1]"),),
    ),
    Bug(
        "labels_shifted_twice",
        "the targets are two tokens later",
        "transformers#37830",
        "data.target_ids",
        ("data", "loader"),
        (Change("data.windows:GPTDatasetV1.__init__", "token_ids[1:]", "token_ids[[*range(2, len(token_ids)), 0]]"),),
    ),
    Bug(
        "mean_of_means",
        "micro-batches of different numbers of targets weigh the same",
        "transformers#34191",
        "micro_batches.loss",
        ("micro_batches", "optimizer"),
        (Change("training.step:loss_and_grads_of", "count / max(1, sum(counts))", "1 / len(counts)"),),
    ),
    Bug(
        "all_ignored_is_nan",
        "a batch without targets divides by zero",
        "pytorch#70348",
        "none",
        ("extremes", "micro_batches"),
        (Change("ops.cross_entropy:forward", "max(1, len(counted))", "len(counted)"),),
    ),
    # Optimizer
    Bug(
        "adam_eps_before_correction",
        "eps is added before the correction of v, and so scaled by it",
        "tensorflow#35102, nanochat#304",
        "step1.tok_emb.weight",
        ("optimizer", "closed_form"),
        (
            Change(
                "training.adamw:AdamW.step",
                "denominator /= correction2\n        denominator += self.eps",
                "denominator += self.eps\n        denominator /= correction2",
            ),
        ),
    ),
    Bug(
        "clip_per_tensor",
        "every tensor is clipped by a norm of its own",
        "entrenar#311, transformers#581",
        "clipped.tok_emb.weight",
        ("optimizer", "closed_form"),
        (
            Change(
                "training.clipping:clip_grad_norm",
                "over_rows(lambda block: np.multiply(block, factor, out=block), gradient)",
                "gradient *= min(1, max_norm / (math.sqrt(_sum_of_squares(gradient)) + 1e-6))",
            ),
        ),
    ),
    Bug(
        "coupled_weight_decay",
        "the decay is part of the gradient, as in Adam with L2",
        "Loshchilov & Hutter 2019, the reason for AdamW",
        "step1.exp_avg.tok_emb.weight",
        ("optimizer", "closed_form"),
        (
            Change("training.adamw:AdamW.step", "p *= decay", "g = g + self.weight_decay * p"),
        ),
    ),
    Bug(
        "decay_without_lr",
        "the decay is not multiplied by the learning rate",
        "no public report known",
        "step1.tok_emb.weight",
        ("optimizer", "closed_form"),
        (Change("training.adamw:AdamW.step", "1 - lr * weight_decay", "1 - weight_decay"),),
    ),
    Bug(
        "bias_correction_off_by_one",
        "the corrections are those of the next step",
        "no public report known",
        "step1.tok_emb.weight",
        ("optimizer", "closed_form"),
        (
            Change("training.adamw:AdamW.step", "beta1**self.steps", "beta1 ** (self.steps + 1)"),
            Change("training.adamw:AdamW.step", "beta2**self.steps", "beta2 ** (self.steps + 1)"),
        ),
    ),
    # State
    Bug(
        "backward_accumulates",
        "a second backward adds to the first's gradients",
        "micrograd#102",
        "micro_batches.tok_emb.weight",
        ("purity", "micro_batches"),
        (
            Change(
                "model.gpt:GPTModel.backward",
                "return gradients",
                "earlier = getattr(self, '_earlier', {})\n"
                "    self._earlier = {name: g + earlier.get(name, 0) for name, g in gradients.items()}\n"
                "    return self._earlier",
            ),
        ),
    ),
    Bug(
        "cache_leaks",
        "a generation goes on from the keys and values of the one before",
        "burn-lm#53",
        "second_generation.token_ids",
        ("cache", "sampling"),
        (
            Change("decoding.generation:_stream", "past = None\n", "past = getattr(model, '_past', None)\n"),
            Change("decoding.generation:_stream", "chosen = choose", "model._past = past\n        chosen = choose"),
        ),
    ),
    # Decoding
    Bug(
        "eos_of_any_row_ends_batch",
        "one row's eos stops all rows",
        "SOKE#7",
        "generation.token_ids",
        ("sampling", "decoding"),
        (Change("decoding.generation:generate", "stopped.all()", "stopped.any()"),),
    ),
    Bug(
        "top_k_keeps_ties",
        "all logits equal to the k-th stay",
        "the book's own listing",
        "generation.top_k",
        ("sampling", "decoding"),
        (
            Change(
                "decoding.sampling:keep_top_k",
                "return kept",
                "return np.where(logits < np.sort(logits, axis=-1)[:, -k, np.newaxis], -np.inf, logits)",
            ),
        ),
    ),
    Bug(
        "temperature_zero_divides",
        "temperature 0 divides the logits by 0",
        "gemma#562",
        "generation.token_ids",
        ("sampling", "cache"),
        (
            Change("decoding.sampling:choose", "if temperature == 0:", "if temperature < 0:"),
            Change("decoding.sampling:softmax_with_temperature", "not 0 < temperature", "not 0 <= temperature"),
        ),
    ),
    Bug(
        "temperature_zero_means_one",
        "temperature 0 samples as at 1",
        "no public report known",
        "generation.token_ids",
        ("sampling", "cache"),
        (
            Change("decoding.sampling:choose", "if temperature == 0:", "if temperature < 0:"),
            Change(
                "decoding.sampling:choose",
                "softmax_with_temperature(logits, temperature)",
                "softmax_with_temperature(logits, temperature or 1)",
            ),
        ),
    ),
    # Files and dtypes
    Bug(
        "square_weights_transposed",
        "in and out of a square matrix exchanged on loading: no shape complains",
        "nanoGPT#190",
        "loaded.trf_blocks.0.att.W_query.weight",
        ("weights", "forward"),
        (
            Change(
                "model.gpt:GPTModel.load_state_dict",
                "np.copyto(array, given[name], casting",
                "np.copyto(array, given[name].T if given[name].T.shape == array.shape else given[name], casting",
            ),
        ),
    ),
    Bug(
        "float64_inside",
        "a buffer of NumPy's default dtype: float32 comes out as float64",
        "autograd#671",
        "none",
        ("dtypes",),
        (
            Change(
                "ops.softmax:forward",
                "np.empty(x.shape, x.dtype)",
                "np.empty(x.shape, complex if x.dtype.kind == 'c' else float)",
            ),
        ),
    ),
    Bug(
        "float32_inside",
        "a buffer of float32 inside a float64 computation",
        "autograd#671",
        "trf_blocks.0.att.attn_weights",
        ("dtypes", "forward"),
        (
            Change(
                "ops.softmax:forward",
                "np.empty(x.shape, x.dtype)",
                "np.empty(x.shape, x.dtype if x.dtype.kind == 'c' else np.float32)",
            ),
        ),
    ),
)

#: The planted bugs by name.
BUGS: dict[str, Bug] = {bug.name: bug for bug in _CATALOGUE}

#: Real bugs that are not planted, and why: the model's code has no place for them.
NOT_PLANTED: dict[str, str] = {
    "positions not shifted for left padding (transformers#18104)": (
        "there is no padding: rows of a batch have equal lengths"
    ),
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
        "a fault of the checks: test_gradcheck.py demands that such a cotangent gives no verdict"
    ),
}

#: Changes that must make no difference: the checks let them pass.
CONTROLS: tuple[Bug, ...] = (
    Bug(
        "gelu_by_products",
        "u = (c x) (1 + a x²)",
        "control",
        "none",
        (),
        (Change("ops.gelu:forward", "C * (x + A * x * x * x)", "C * x * (1 + A * (x * x))"),),
    ),
    Bug(
        "values_scaled_later",
        "the scale of the scores applied to the queries",
        "control",
        "none",
        (),
        (
            Change(
                _ATTENTION,
                "(queries * (1 / math.sqrt(K))) @ keys.mT",
                "(queries @ keys.mT) * (1 / math.sqrt(K))",
            ),
        ),
    ),
    Bug(
        "embedding_by_add_at",
        "np.add.at for the sum over equal ids",
        "control",
        "none",
        (),
        (
            Change(
                "ops.embedding:backward",
                "d_weight[present] = np.add.reduceat(d_rows[order], first, axis=0)",
                "np.add.at(d_weight, saved.ids.reshape(-1), d_rows)",
            ),
        ),
    ),
    Bug(
        "bias_summed_backwards",
        "the bias gradient summed from the last row to the first",
        "control",
        "none",
        (),
        (Change("ops.linear:backward", "d_rows.sum(axis=0)", "d_rows[::-1].sum(axis=0)"),),
    ),
    Bug(
        "norm_by_division",
        "(x - mean) divided by the root",
        "control",
        "none",
        (),
        (
            Change(
                "ops.layer_norm:forward",
                "np.multiply(centered, inv_std, out=normalized)",
                "np.divide(centered, np.sqrt(variance + eps), out=normalized)",
            ),
        ),
    ),
)
