"""Slips: mistakes in the code that anybody may make who writes GPT, besides the planted bugs, which were met.

Each is a small named change of our code (`numpygpt.checks.planting`). Where whoever makes the mistake would have its
true gradient, because a framework differentiates their forward, the backward is changed to it, too.
"""

from numpygpt.checks.planting import Bug, Change


def _slip(name: str, what: str, *changes: tuple[str, str, str], seen_at: str = "") -> Bug:
    """A slip; `changes` are (function, original, changed) each."""
    return Bug(name, what, seen_at, "none", (), tuple(Change(*change) for change in changes))


# Attention

_ATTENTION, _ATTENTION_BACKWARD = "ops.attention:forward", "ops.attention:backward"
_SIZES = "T, S, K = queries.shape[2], keys.shape[2], queries.shape[3]"
_SOFTMAX = "attn_weights, softmaxed = casting.forward(softmax, precision.softmax, attn_scores)"
_SOFTMAX_BACKWARD = "casting.backward(softmax, d_attn_weights, saved.softmax).x"
_FORWARD_SCALE, _BACKWARD_SCALE = "queries * (1 / math.sqrt(K))", "1 / math.sqrt(saved.queries.shape[-1])"
_SCORES = "product(queries * (1 / math.sqrt(K)), keys.mT, low)"
_PAST, _CONTEXT = "past=S - T", "product(dropped_weights, values, low)"
_VALUES_GRADIENT = "product(saved.dropped_weights.mT, d_context, low)"


def _scores_scaled(name: str, what: str, forward: str, backward: str) -> Bug:
    return _slip(
        name,
        what,
        (_ATTENTION, _FORWARD_SCALE, f"queries * {forward}"),
        (_ATTENTION_BACKWARD, _BACKWARD_SCALE, backward),
    )


def _softmax_over(name: str, what: str, axis: int) -> Bug:
    there, back = f"np.moveaxis({{}}, {axis}, -1)", f"np.moveaxis({{}}, -1, {axis})"
    return _slip(
        name,
        what,
        (
            _ATTENTION,
            _SOFTMAX,
            f"attn_weights, softmaxed = softmax.forward({there.format('attn_scores')})\n"
            f"    attn_weights = {back.format('attn_weights')}",
        ),
        (
            _ATTENTION_BACKWARD,
            _SOFTMAX_BACKWARD,
            back.format(_SOFTMAX_BACKWARD.replace("d_attn_weights", there.format("d_attn_weights"))),
        ),
    )


def _operands(order: tuple[str, str, str]) -> Bug:
    words = ", ".join(order)
    return _slip(
        f"attention_of_{'_'.join(order)}",
        f"attention is called with {words} in the places of queries, keys, values",
        (_ATTENTION, _SIZES, f"queries, keys, values = {words}\n    {_SIZES}"),
    )


_OF_ATTENTION = (
    _scores_scaled("scores_not_scaled", "the scores are not divided by sqrt(K)", "1", "1"),
    _scores_scaled(
        "scores_divided_by_head_dim",
        "the scores are divided by K, not by its root",
        "(1 / K)",
        "1 / saved.queries.shape[-1]",
    ),
    _slip(
        "scale_forgotten_in_the_backward",
        "the backward of attention does not divide by sqrt(K)",
        (_ATTENTION_BACKWARD, _BACKWARD_SCALE, "1"),
    ),
    _slip(
        "mask_shows_the_next",
        "a token sees the one after it: the causal mask begins one too late",
        (_ATTENTION, _PAST, f"{_PAST} + 1"),
    ),
    _slip(
        "mask_after_softmax",
        "the mask sets weights to 0 after the softmax, so that the weights of a row do not add up to 1",
        (_ATTENTION, "np.copyto(attn_scores, -np.inf, where=unseen)", "pass"),
        (
            _ATTENTION,
            'watch("attn_weights", attn_weights)',
            "np.copyto(attn_weights, 0, where=False if unseen is None else unseen)\n"
            '    watch("attn_weights", attn_weights)',
        ),
    ),
    _softmax_over("softmax_over_queries", "the softmax is over the queries, not over the keys", 2),
    _softmax_over("softmax_over_heads", "the softmax is over the heads, not over the keys", 1),
    _slip(
        "softmax_gradient_without_sum",
        "the backward of softmax does not subtract the sum over the row",
        ("ops.softmax:backward", "d_x -= y * d_x.sum(axis=-1, keepdims=True)", "pass"),
    ),
    *(
        _operands(order)
        for order in (
            ("queries", "values", "keys"),
            ("keys", "queries", "values"),
            ("values", "keys", "queries"),
            ("keys", "values", "queries"),
            ("values", "queries", "keys"),
        )
    ),
    _slip(
        "scores_transposed",
        "the scores are keys @ queriesᵀ, not queries @ keysᵀ",
        (_ATTENTION, _SCORES, f"{_SCORES}.mT.copy()"),
    ),
    _slip(
        "weights_transposed_for_the_context",
        "the context is attn_weightsᵀ @ values",
        (_ATTENTION, _CONTEXT, "product(dropped_weights.mT, values)"),
    ),
    _slip(
        "context_of_weights_before_dropout",
        "the context takes the weights before their dropout",
        (_ATTENTION, _CONTEXT, "product(attn_weights, values)"),
    ),
    _slip(
        "values_gradient_of_weights_before_dropout",
        "the gradient of the values takes the weights before their dropout",
        (_ATTENTION_BACKWARD, _VALUES_GRADIENT, "product(saved.softmax.y.mT, d_context)"),
    ),
    _slip(
        "values_gradient_of_weights_not_transposed",
        "the gradient of the values takes attn_weights where its transpose belongs",
        (_ATTENTION_BACKWARD, _VALUES_GRADIENT, "product(saved.dropped_weights, d_context)"),
    ),
)

# The activation

_GELU, _GELU_BACKWARD = "ops.gelu:forward", "ops.gelu:backward"
_GELU_SHARE, _GELU_SLOPE = "u = C * (x + A * x * x * x)", "(2 * C * (1 + 3 * A * x * x))"


def _other_gelu(name: str, what: str, share: str, slope: str) -> Bug:
    """GELU with another share of x that passes, (1 + tanh(u)) / 2; the slope is 2 du/dx."""
    return _slip(name, what, (_GELU, _GELU_SHARE, f"u = {share}"), (_GELU_BACKWARD, _GELU_SLOPE, slope))


def _other_function(name: str, function: str, value: str, slope: str) -> Bug:
    return _slip(
        name,
        f"{function} stands in the place of GELU",
        (_GELU, "np.multiply(x, s, out=y)", f"y[...] = {value}"),
        (_GELU_BACKWARD, "s + x * ds_dx", slope),
    )


def _other_slope(name: str, what: str, slope: str) -> Bug:
    return _slip(name, what, (_GELU_BACKWARD, "s + x * ds_dx", slope))


_OF_ACTIVATIONS = (
    _other_gelu("quick_gelu", "x sigmoid(1.702 x) stands in the place of GELU", "0.851 * x", "1.702"),
    _other_gelu("silu", "x sigmoid(x), which is SiLU, stands in the place of GELU", "0.5 * x", "1"),
    _other_gelu("gelu_without_its_cube", "GELU lacks the term with x cubed", "C * x", "(2 * C)"),
    _other_gelu(
        "gelu_of_2_over_pi",
        "GELU's 2 / pi lacks its root",
        "2 / math.pi * (x + A * x * x * x)",
        "(4 / math.pi * (1 + 3 * A * x * x))",
    ),
    _other_function("relu", "ReLU", "x * (x > 0)", "x > 0"),
    _other_function("relu_squared", "the square of ReLU", "x * x * (x > 0)", "2 * x * (x > 0)"),
    _other_function(
        "leaky_relu", "ReLU with the slope 0.01", "x * np.where(x > 0, 1, 0.01)", "np.where(x > 0, 1, 0.01)"
    ),
    _other_function("no_activation", "nothing", "x", "1"),
    _other_function("tanh", "tanh", "np.tanh(x)", "1 - np.tanh(x) ** 2"),
    _other_function("sigmoid", "the sigmoid", "1 / (1 + np.exp(-x))", "np.exp(-x) / (1 + np.exp(-x)) ** 2"),
    _other_slope("gelu_slope_of_one_factor", "GELU's slope lacks what comes from its share of x", "s"),
    _other_slope("gelu_slope_of_relu", "the backward has the slope of ReLU", "x > 0"),
    _other_slope("gelu_slope_without_x", "GELU's slope lacks the factor x of its second term", "s + ds_dx"),
)

# Norms

_NORM, _NORM_BACKWARD = "ops.layer_norm:forward", "ops.layer_norm:backward"
_CENTERED, _OVER_ROWS = "centered = x - x.mean(axis=-1, keepdims=True)", "over_rows(block, x, inv_std, normalized, y)"
_VARIANCE, _ROOT = "(centered * centered).mean(axis=-1, keepdims=True)", "np.sqrt(variance + eps)"
_OF_MEAN, _OF_VARIANCE = "d_x -= d_x.mean(axis=-1, keepdims=True)", "d_normalized -= normalized * along"


def _norm_over(what: str, axis: int) -> Bug:
    mean = f"mean(axis={axis}, keepdims=True)"
    return _slip(
        f"norm_over_{what}",
        f"mean and variance are taken over the {what}, not over the features",
        (
            _NORM,
            _OVER_ROWS,
            f"centered = x - x.{mean}\n"
            f"    inv_std = 1 / np.sqrt((centered * centered).{mean} + eps)\n"
            f"    normalized = centered * inv_std\n"
            f"    y = scale * normalized + (0 if shift is None else shift)",
        ),
    )


_OF_NORMS = (
    _slip(
        "norm_does_not_center",
        "the norm does not subtract the mean, as RMSNorm",
        (_NORM, _CENTERED, "centered = x - 0 * x"),
        (_NORM_BACKWARD, _OF_MEAN, "pass"),
    ),
    _slip("norm_only_centers", "the norm does not divide by the deviation", (_NORM, _ROOT, "(1 + 0 * variance)")),
    _slip(
        "norm_divides_by_variance",
        "the norm divides by the variance, not by its root",
        (_NORM, _ROOT, "(variance + eps)"),
    ),
    _slip(
        "norm_divides_by_sum_of_squares",
        "the variance is a sum over the features, not their mean",
        (_NORM, _VARIANCE, _VARIANCE.replace("mean", "sum")),
    ),
    _norm_over("tokens", -2),
    _norm_over("batch", 0),
    _slip(
        "norm_gradient_without_mean",
        "the norm's backward lacks what comes through the mean",
        (_NORM_BACKWARD, _OF_MEAN, "pass"),
    ),
    _slip(
        "norm_gradient_without_variance",
        "the norm's backward lacks what comes through the variance",
        (_NORM_BACKWARD, _OF_VARIANCE, "pass"),
    ),
    _slip(
        "norm_gradient_of_a_constant_deviation",
        "the norm's backward takes mean and variance for constants",
        (_NORM_BACKWARD, _OF_VARIANCE, "pass"),
        (_NORM_BACKWARD, _OF_MEAN, "pass"),
    ),
    _slip(
        "norm_gradient_without_scale",
        "the norm's backward does not multiply by the scale",
        (_NORM_BACKWARD, "d_normalized = d_y * scale", "d_normalized = d_y.copy()"),
    ),
    _slip(
        "scale_gradient_not_centered",
        "the gradient of the norm's scale takes x / deviation, without subtracting the mean from x",
        (
            _NORM,
            "return y, Saved(normalized, inv_std, scale, wanted)",
            "return y, Saved(normalized, inv_std, (scale, x * inv_std), wanted)",
        ),
        (
            _NORM_BACKWARD,
            "normalized, inv_std, scale, wanted = saved",
            "normalized, inv_std, (scale, not_centered), wanted = saved",
        ),
        (
            _NORM_BACKWARD,
            "_total(d_scales), _total(d_shifts)",
            "(d_y * not_centered).reshape(-1, d_y.shape[-1]).sum(axis=0), _total(d_shifts)",
        ),
        seen_at="llm.c#428",
    ),
    _slip(
        "scale_gradient_not_normalized",
        "the gradient of the norm's scale takes x - mean, without dividing by the deviation",
        (
            _NORM_BACKWARD,
            "_total(d_scales), _total(d_shifts)",
            "(d_y * normalized / inv_std).reshape(-1, d_y.shape[-1]).sum(axis=0), _total(d_shifts)",
        ),
    ),
)

# Blocks and the residual stream

_BLOCK, _BLOCK_BACKWARD = "layers.transformer_block:forward", "layers.transformer_block:backward"
_AROUND_ATTENTION, _AROUND_FEED_FORWARD = "r = x + dropped", "y = r + dropped"


def _residual(part: str, around: str, alone: str, gradient: str) -> tuple[Bug, Bug]:
    """The sum around a part of the block is missing, or only its gradient is."""
    words = part.replace("_", " ")
    no_gradient = (_BLOCK_BACKWARD, gradient, "pass")
    return (
        _slip(
            f"residual_around_{part}_missing",
            f"the input of {words} and its norm is not added to what {words} gives",
            (_BLOCK, around, alone),
            no_gradient,
        ),
        _slip(f"residual_gradient_around_{part}_missing", f"the gradient does not go past {words}", no_gradient),
    )


_OF_BLOCKS = (
    *_residual("attention", _AROUND_ATTENTION, "r = dropped + 0 * x", "d_x += d_r"),
    *_residual("feed_forward", _AROUND_FEED_FORWARD, "y = dropped + 0 * r", "d_r += d_y"),
    _slip(
        "residual_after_norm1",
        "norm1's output, not its input, is added to what attention gives",
        (_BLOCK, _AROUND_ATTENTION, "r = a + dropped"),
        (_BLOCK_BACKWARD, 'watch("d_norm1", d_a)', 'd_a = d_a + d_r\n    watch("d_norm1", d_a)'),
        (_BLOCK_BACKWARD, "d_x += d_r", "pass"),
    ),
    _slip(
        "residual_after_norm2",
        "norm2's output, not its input, is added to what the feed-forward layers give",
        (_BLOCK, _AROUND_FEED_FORWARD, "y = f + dropped"),
        (_BLOCK_BACKWARD, 'watch("d_norm2", d_f)', 'd_f = d_f + d_y\n    watch("d_norm2", d_f)'),
        (_BLOCK_BACKWARD, "d_r += d_y", "pass"),
    ),
    _slip(
        "residual_of_the_block_around_feed_forward",
        "the block's input, not the residual, is added to what the feed-forward layers give",
        (_BLOCK, _AROUND_FEED_FORWARD, "y = x + dropped"),
    ),
    _slip(
        "feed_forward_beside_attention",
        "norm2 reads the block's input, not the residual after attention",
        (_BLOCK, "r, *parameters.norm2", "x, *parameters.norm2"),
    ),
    _slip(
        "norm1_skipped",
        "attention reads the block's input without norm1",
        (_BLOCK, 'watch("norm1", a)', 'a = x\n    watch("norm1", a.copy())'),
    ),
    _slip(
        "norm2_skipped",
        "the feed-forward layers read the residual without norm2",
        (_BLOCK, 'watch("norm2", f)', 'f = r\n    watch("norm2", f.copy())'),
    ),
    _slip(
        "final_norm_skipped",
        "the head reads the last block's output without the final norm",
        ("model.body:forward", 'watch("final_norm", hidden)', 'hidden = x.copy()\n    watch("final_norm", hidden)'),
    ),
)

# Embeddings and positions

_BODY = "model.body:forward"
_POSITIONS = "np.arange(T) + (past[0].length if past else 0)"

_OF_EMBEDDINGS = (
    _slip(
        "embeddings_scaled",
        "the token embeddings are multiplied by sqrt(D)",
        (_BODY, 'watch("tok_emb", tokens)', 'tokens = tokens * tokens.shape[-1] ** 0.5\n    watch("tok_emb", tokens)'),
    ),
    _slip("positions_begin_at_one", "the first token has position 1", (_BODY, _POSITIONS, f"{_POSITIONS} + 1")),
    _slip("positions_all_zero", "every token has position 0", (_BODY, _POSITIONS, f"0 * ({_POSITIONS})")),
    _slip("positions_backwards", "the last token has position 0", (_BODY, _POSITIONS, f"({_POSITIONS})[::-1]")),
    _slip(
        "positions_of_the_batch",
        "a token's position is the number of its sequence",
        (_BODY, _POSITIONS, "np.arange(len(inputs))[:, np.newaxis] + np.zeros((1, T), int)"),
    ),
    _slip(
        "positions_in_place_of_tokens",
        "the positions are added twice, and the token embeddings not at all",
        (_BODY, "dropout.forward(tokens + located", "dropout.forward(located + located"),
    ),
)

# Dropout

_DROPOUT = "ops.dropout:_kept_and_scaled"

_OF_DROPOUT = (
    _slip(
        "dropout_not_scaled",
        "dropout does not divide what it keeps by 1 - drop_rate",
        (_DROPOUT, "1 / (1 - drop_rate)", "1"),
    ),
    _slip(
        "dropout_scaled_by_kept_share",
        "dropout multiplies what it keeps by 1 - drop_rate",
        (_DROPOUT, "1 / (1 - drop_rate)", "(1 - drop_rate)"),
    ),
    _slip(
        "dropout_scaled_by_rate",
        "dropout divides what it keeps by drop_rate",
        (_DROPOUT, "1 / (1 - drop_rate)", "1 / drop_rate"),
    ),
    _slip(
        "dropout_mask_inverted",
        "dropout keeps what it should drop",
        (_DROPOUT, "np.multiply(x, keep, out=y)", "np.multiply(x, ~keep, out=y)"),
    ),
    _slip(
        "dropout_only_scales",
        "dropout scales and drops nothing",
        (_DROPOUT, "np.multiply(x, keep, out=y)", "y[...] = x"),
    ),
    _slip(
        "no_dropout_of_embeddings",
        "there is no dropout after the embeddings",
        (_BODY, "tokens + located, masks.embedding", "tokens + located, None"),
    ),
    _slip(
        "no_dropout_of_weights",
        "there is no dropout of attention's weights",
        (_BLOCK, "keep=masks.attention", "keep=None"),
    ),
    _slip(
        "no_dropout_after_attention", "there is no dropout after attention", (_BLOCK, "masks.after_attention", "None")
    ),
    _slip(
        "no_dropout_after_feed_forward",
        "there is no dropout after the feed-forward layers",
        (_BLOCK, "masks.after_feed_forward", "None"),
    ),
)

# The head and the loss

_LOSS, _LOSS_BACKWARD = "ops.cross_entropy:forward", "ops.cross_entropy:backward"
_MEAN, _SHARE = "losses.sum() / logits.dtype.type(max(1, len(counted)))", "d_loss / max(1, len(counted))"
_HIGHEST, _MINUS_ONE = (
    "highest, log_sum = np.empty((2, len(logits), 1), logits.dtype)",
    "d_logits[counted, targets[counted]] -= row_weight[counted, 0]",
)
_PROBABILITIES = (
    "logits = np.exp(logits - logits.max(axis=1, keepdims=True))\n    logits /= logits.sum(axis=1, keepdims=True)"
)
_COUNTED = "np.flatnonzero(targets != ignore_index)"

_OF_LOSS = (
    _slip(
        "loss_summed",
        "the loss is the sum over the targets, not their mean",
        (_LOSS, _MEAN, "losses.sum()"),
        (_LOSS_BACKWARD, _SHARE, "d_loss"),
    ),
    _slip(
        "loss_gradient_not_divided",
        "the gradient of the logits is not divided by the number of targets",
        (_LOSS_BACKWARD, _SHARE, "d_loss"),
    ),
    _slip(
        "one_hot_not_subtracted",
        "the gradient of the logits lacks the target's one",
        (_LOSS_BACKWARD, _MINUS_ONE, _MINUS_ONE.replace("row_weight", "0 * row_weight")),
    ),
    _slip(
        "one_hot_added",
        "the gradient of the logits has its sign wrong at the target",
        (_LOSS_BACKWARD, _MINUS_ONE, _MINUS_ONE.replace("-=", "+=")),
    ),
    _slip(
        "loss_of_probabilities",
        "the loss takes probabilities for logits: the softmax is there twice",
        (_LOSS, _HIGHEST, f"{_PROBABILITIES}\n    {_HIGHEST}"),
    ),
    _slip(
        "loss_ignores_id_0",
        "targets with the id 0 do not count, as if they were padding",
        (_LOSS, _COUNTED, "np.flatnonzero(targets > 0)"),
        (_LOSS_BACKWARD, _COUNTED, "np.flatnonzero(targets > 0)"),
    ),
    _slip(
        "loss_in_bits",
        "the loss has the logarithm to base 2",
        (_LOSS, _MEAN, f"{_MEAN} / np.log(2.0)"),
        (_LOSS_BACKWARD, _SHARE, f"{_SHARE} / np.log(2.0)"),
    ),
    _slip(
        "gradient_of_tied_head_alone",
        "with tied weights only the head's path reaches the gradient",
        (
            "model.gpt:GPTModel.backward",
            'gradients["tok_emb.weight"] += gradients.pop',
            'gradients["tok_emb.weight"] = gradients.pop',
        ),
    ),
    _slip(
        "tied_head_copied_once",
        "the head is a copy of the embedding, which training does not change",
        (
            "model.initialization:allocate",
            "Linear(tok_emb if config.tie_weights else empty(V, D))",
            "Linear(tok_emb.copy() if config.tie_weights else empty(V, D))",
        ),
        (
            "model.gpt:GPTModel.load_state_dict",
            'for name, array in own.items():\n        np.copyto(array, given[name], casting="same_kind")',
            'for name, array in own.items():\n        np.copyto(array, given[name], casting="same_kind")\n'
            "    if self.config.tie_weights:\n"
            "        self.parameters.out_head.weight[...] = self.parameters.tok_emb.weight",
        ),
        seen_at="rasbt/LLMs-from-scratch#822",
    ),
    _slip(
        "generates_from_the_first_position",
        "generation reads the logits of the first position, not of the last",
        ("model.gpt:GPTModel.decode", "hidden[:, -1:]", "hidden[:, :1]"),
    ),
)

# AdamW

_STEP, _ANY_STEP = "training.adamw:AdamW.update", "training.optimizer:Optimizer.step"
_CORRECTION1, _CORRECTION2 = "1 - beta1**self.steps", "math.sqrt(1 - beta2**self.steps)"
_MOMENT1, _MOMENT2 = "m += (1 - beta1) * (g - m)", "v += (1 - beta2) * g * g"
_DECAY, _UPDATE = "p *= 1 - rates.lr * rates.weight_decay", "p -= denominator"
_COUNT, _V_ROOT, _EPS = "self.steps += 1", "np.sqrt(v)", "denominator += self.eps"


_RESET = "for moment in (*self.exp_avg.values(), *self.exp_avg_sq.values()):\n        moment[...] = 0"
_IS_WEIGHT, _IS_NO_EMBEDDING = 'name.endswith(".weight")', '"_emb" not in name'
_RATES, _BOTH = "training.optimizer:Optimizer.rates_of", "return Rates(self.lr, self.weight_decay"


def _of_step(name: str, what: str, *changes: tuple[str, str]) -> Bug:
    return _slip(name, what, *((_STEP, original, changed) for original, changed in changes))


_OF_ADAMW = (
    _of_step(
        "no_bias_correction",
        "AdamW does not correct its moments for their start at zero",
        (_CORRECTION1, "1.0"),
        (_CORRECTION2, "1.0"),
    ),
    _of_step("first_moment_not_corrected", "AdamW corrects v, but not m, for its start at zero", (_CORRECTION1, "1.0")),
    _of_step(
        "second_moment_not_corrected", "AdamW corrects m, but not v, for its start at zero", (_CORRECTION2, "1.0")
    ),
    _of_step(
        "second_correction_without_root",
        "AdamW's correction of v lacks its root",
        (_CORRECTION2, "(1 - beta2**self.steps)"),
    ),
    _of_step(
        "eps_inside_the_root",
        "AdamW's eps is inside of the root of v",
        ("denominator /= correction2", "pass"),
        (_V_ROOT, "np.sqrt(v / correction2**2 + self.eps)"),
        (_EPS, "pass"),
    ),
    _of_step(
        "eps_inside_the_root_before_correction",
        "AdamW's eps is inside of the root of v, before the correction",
        (_V_ROOT, "np.sqrt(v + self.eps)"),
        (_EPS, "pass"),
    ),
    _of_step("no_root_of_v", "AdamW divides by v, not by its root", (_V_ROOT, "v.copy()")),
    _of_step(
        "decay_after_the_step",
        "the weight decay comes after the step",
        (_DECAY, "pass"),
        (_UPDATE, f"{_UPDATE}; {_DECAY}"),
    ),
    _of_step(
        "decay_increases", "the weight decay has its sign wrong", (_DECAY, "p *= 1 + rates.lr * rates.weight_decay")
    ),
    _of_step("step_uphill", "the step has its sign wrong", (_UPDATE, "p += denominator")),
    _of_step(
        "moment_adds_whole_gradient",
        "m takes the whole gradient, not its share 1 - beta1",
        (_MOMENT1, "m += g - (1 - beta1) * m"),
    ),
    _of_step(
        "moment_adds_whole_square",
        "v takes the whole square of the gradient, not its share 1 - beta2",
        (_MOMENT2, "v += g * g"),
    ),
    _of_step(
        "second_moment_of_sizes",
        "v takes the gradient's size, not its square",
        (_MOMENT2, "v += (1 - beta2) * np.sqrt(g * g)"),
    ),
    _of_step(
        "second_moment_of_first", "v takes the square of m, not of the gradient", (_MOMENT2, "v += (1 - beta2) * m * m")
    ),
    _of_step(
        "betas_exchanged", "beta1 and beta2 are exchanged", ("beta1, beta2 = self.betas", "beta2, beta1 = self.betas")
    ),
    _slip(
        "moments_reset", "the moments begin at zero in each step", (_ANY_STEP, _COUNT, f"{_COUNT}\n    {_RESET}")
    ),
    _slip(
        "steps_not_counted",
        "the corrections are those of the first step in every step",
        (_ANY_STEP, _COUNT, "self.steps = 1"),
    ),
    _slip(
        "gradients_clipped",
        "the gradients are clipped to the norm 1 before the step",
        (
            _ANY_STEP,
            _COUNT,
            f"{_COUNT}\n"
            "    total = sum(float((g * g).sum()) for g in grads.values()) ** 0.5\n"
            "    grads = {name: g * min(1.0, 1 / (total + 1e-6)) for name, g in grads.items()}",
        ),
    ),
    *(
        _slip(name, f"{what} have no weight decay", (_RATES, _BOTH, f"{_BOTH} * ({decays})"))
        for name, what, decays in (
            ("only_matrices_decay", "biases and norms", _IS_WEIGHT),
            ("embeddings_do_not_decay", "embeddings", _IS_NO_EMBEDDING),
            ("only_matrices_of_blocks_decay", "biases, norms and embeddings", f"{_IS_WEIGHT} and {_IS_NO_EMBEDDING}"),
        )
    ),
)

SLIPS: tuple[Bug, ...] = (
    *_OF_ATTENTION,
    *_OF_ACTIVATIONS,
    *_OF_NORMS,
    *_OF_BLOCKS,
    *_OF_EMBEDDINGS,
    *_OF_DROPOUT,
    *_OF_LOSS,
    *_OF_ADAMW,
)
