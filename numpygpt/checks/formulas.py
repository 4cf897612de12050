"""How each tensor of a trace is computed, in one line. `docs/trace-format.md` prints the same lines.

`x` stands for the input of a block: `drop_emb` for the first, `trf_blocks.{i-1}` for the others. `@` is the matrix
product, `ᵀ` exchanges the last two axes, and `*` is elementwise. A name without its module is in the same block.
"""

import re

BLOCK = re.compile(r"(?<=trf_blocks\.)\d+")

#: {name, with {i} for the number of the block: the line}.
FORWARD = {
    "tok_emb": "tok_emb.weight[inputs]",
    "pos_emb": "pos_emb.weight[0, ..., T - 1], or the sinusoids of these positions",
    "drop_emb": "dropout(tok_emb + pos_emb)",
    "trf_blocks.{i}.norm1": "layer_norm(x) = scale * (x - mean) / sqrt(biased variance + norm_eps) + shift",
    "trf_blocks.{i}.att.queries": "norm1 @ W_query.weightᵀ + W_query.bias, split into H heads: (B, H, T, K)",
    "trf_blocks.{i}.att.keys": "norm1 @ W_key.weightᵀ + W_key.bias, split into H heads",
    "trf_blocks.{i}.att.values": "norm1 @ W_value.weightᵀ + W_value.bias, split into H heads",
    "trf_blocks.{i}.att.attn_scores": "queries @ keysᵀ / sqrt(K), and -inf where the key is later than the query",
    "trf_blocks.{i}.att.attn_weights": "softmax(attn_scores) over the keys",
    "trf_blocks.{i}.att.dropout": "dropout(attn_weights)",
    "trf_blocks.{i}.att.context_vec": "dropout @ values, with the heads side by side again: (B, T, D)",
    "trf_blocks.{i}.att.out_proj": "context_vec @ out_proj.weightᵀ + out_proj.bias",
    "trf_blocks.{i}.drop_att": "dropout(att.out_proj)",
    "trf_blocks.{i}.residual": "x + drop_att",
    "trf_blocks.{i}.norm2": "layer_norm(residual)",
    "trf_blocks.{i}.ff.layers.0": "norm2 @ layers.0.weightᵀ + layers.0.bias",
    "trf_blocks.{i}.ff.layers.1": "gelu(layers.0), in the form that the configuration names",
    "trf_blocks.{i}.ff.layers.2": "layers.1 @ layers.2.weightᵀ + layers.2.bias",
    "trf_blocks.{i}.drop_ff": "dropout(ff.layers.2)",
    "trf_blocks.{i}": "residual + drop_ff",
    "final_norm": "layer_norm(the last block's output)",
    "logits": "final_norm @ out_head.weightᵀ, or tok_emb.weightᵀ if the weights are tied",
    "loss": "the mean over B and T of log(sum(exp(logits))) - logits[targets]",
}

BACKWARD = {
    "d_logits": "(softmax(logits) - onehot(targets)) / (B T)",
    "d_final_norm": "d_logits @ out_head.weight, or tok_emb.weight",
    "d_trf_blocks.{i}": (
        "through the next block's norm1, plus the next block's d_residual; of the last block, through final_norm"
    ),
    "d_trf_blocks.{i}.drop_ff": "d of the block's output",
    "d_trf_blocks.{i}.ff.layers.2": "d_drop_ff through the dropout",
    "d_trf_blocks.{i}.ff.layers.1": "d_layers.2 @ layers.2.weight",
    "d_trf_blocks.{i}.ff.layers.0": "d_layers.1 * gelu'(layers.0)",
    "d_trf_blocks.{i}.norm2": "d_layers.0 @ layers.0.weight",
    "d_trf_blocks.{i}.residual": "d_norm2 through norm2, plus d of the block's output",
    "d_trf_blocks.{i}.drop_att": "d_residual",
    "d_trf_blocks.{i}.att.out_proj": "d_drop_att through the dropout",
    "d_trf_blocks.{i}.att.context_vec": "d_out_proj @ out_proj.weight",
    "d_trf_blocks.{i}.att.dropout": "d_context_vec, split into heads, @ valuesᵀ",
    "d_trf_blocks.{i}.att.attn_weights": "d_dropout through the dropout",
    "d_trf_blocks.{i}.att.attn_scores": (
        "attn_weights * (d_attn_weights - the sum over keys of attn_weights * d_attn_weights)"
    ),
    "d_trf_blocks.{i}.att.values": "dropoutᵀ @ d_context_vec, split into heads",
    "d_trf_blocks.{i}.att.keys": "d_attn_scoresᵀ @ queries / sqrt(K)",
    "d_trf_blocks.{i}.att.queries": "d_attn_scores @ keys / sqrt(K)",
    "d_trf_blocks.{i}.norm1": (
        "d_queries @ W_query.weight + d_keys @ W_key.weight + d_values @ W_value.weight, with the heads side by side"
    ),
    "d_drop_emb": "through the first block's norm1, plus its d_residual",
    "d_pos_emb": "d_drop_emb through the dropout, summed over the batch",
    "d_tok_emb": "d_drop_emb through the dropout",
}

GIVEN = {
    "inputs": "given: token ids",
    "targets": "given: the token ids one place later",
    "generated.prompt": "given: the first ids of the first sequence",
}
GENERATED = {
    "generated.logits": "the logits before each new token, with the given weights and without dropout",
    "generated.tokens": "the index of the largest of these logits, each appended to the prompt",
}
EXACT = {**FORWARD, **BACKWARD, **GIVEN, **GENERATED}

#: {how a gradient of a parameter ends: the line}, the first that fits.
OF_PARAMETERS = {
    "d_tok_emb.weight": (
        "for each id, the sum of d_tok_emb where it occurs; with tied weights, plus d_logitsᵀ @ final_norm"
    ),
    "d_pos_emb.weight": "d_pos_emb in its first T rows, and 0 below",
    ".weight": "d_yᵀ @ x, summed over B and T, for the layer's input x and output y",
    ".bias": "d_y summed over B and T",
    ".scale": "d_y * (x - mean) / sqrt(variance + norm_eps), summed over B and T",
    ".shift": "d_y summed over B and T",
}
#: {what a tensor of the optimizer begins with, after its step: the line}, the first that fits.
OF_STEPS = {
    "loss": "the loss with the parameters of the step before",
    "d_": "its gradient, with the parameters of the step before",
    "exp_avg.": "beta1 m + (1 - beta1) g, from m = 0",
    "exp_avg_sq.": "beta2 v + (1 - beta2) g * g, from v = 0",
    "": "p - lr weight_decay p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)",
}


def formula(name: str) -> str:
    """How the tensor of this name is computed."""
    general = BLOCK.sub("{i}", name)
    if general in EXACT:
        return EXACT[general]
    if name.startswith("keep."):
        return "given: True where the dropout keeps an element, which it then divides by 1 - drop_rate"
    step, _, rest = name.partition(".")
    if step.startswith("step"):
        return next(line for beginning, line in OF_STEPS.items() if rest.startswith(beginning))
    if name.startswith("d_"):
        return next(line for ending, line in OF_PARAMETERS.items() if name.endswith(ending))
    return "given: a parameter"
