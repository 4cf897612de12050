"""Mistakes in the port to PyTorch: what is replaced, and what the diagnosis must say among its first three lines.

For those in FORESEEN, there is a cause or a relation. Those in HELD_OUT were written after all of these, and nothing
was added because of them: of some, the diagnosis can say where they are and not what they are.
"""

import math

import torch
import torch.nn.functional as F

from parity_tests.torch_port import Port


def _without_shift(self, x, name):
    return Port.norm(self, x, name) - self.p[f"{name}.shift"]


def _normalized_over(axis):
    def norm(self, x, name):
        mean, variance = x.mean(axis, keepdim=True), x.var(axis, keepdim=True, correction=0)
        normalized = (x - mean) / torch.sqrt(variance + self.config.norm_eps)
        return self.p[f"{name}.scale"] * normalized + self.p[f"{name}.shift"]

    return norm


def _norm_with(eps=None, correction=0):
    def norm(self, x, name):
        variance = x.var(-1, keepdim=True, correction=correction)
        normalized = (x - x.mean(-1, keepdim=True)) / torch.sqrt(variance + (eps or self.config.norm_eps))
        return self.p[f"{name}.scale"] * normalized + self.p[f"{name}.shift"]

    return norm


def _block(first="input", second="residual", feeds="residual"):
    """A block in which other tensors are added, or read by norm2."""

    def block(self, x, name):
        normed = self.tell(f"{name}.norm1", self.norm(x, f"{name}.norm1"))
        attended = self.attention(normed, f"{name}.att")
        attended = self.tell(f"{name}.drop_att", self.dropout(attended, f"{name}.drop_att"))
        residual = self.tell(f"{name}.residual", {"input": x, "norm": normed}[first] + attended)
        normed = self.tell(f"{name}.norm2", self.norm({"input": x, "residual": residual}[feeds], f"{name}.norm2"))
        fed = self.tell(f"{name}.drop_ff", self.dropout(self.feed_forward(normed, f"{name}.ff"), f"{name}.drop_ff"))
        return self.tell(name, {"input": x, "norm": normed, "residual": residual}[second] + fed)

    return block


def _masked_from(diagonal, value=-torch.inf):
    def mask(self, scores):
        T = scores.shape[-1]
        return scores.masked_fill(torch.ones(T, T).triu(diagonal).bool(), value)

    return mask


def _dropout_scaled(by):
    def dropout(self, x, site):
        kept = self.given[f"keep.{site}"] if self.training else 1
        return x * kept * (by(self.config.drop_rate) if self.training else 1)

    return dropout


def _with_weights_of(names):
    """Layers take the parameters of others: {part of a name: what stands in its place}."""

    def renamed(name):
        for part, other in names.items():
            if part in name:
                return name.replace(part, other)
        return name

    return {
        "linear": lambda self, x, name: Port.linear(self, x, renamed(name)),
        "norm": lambda self, x, name: Port.norm(self, x, renamed(name)),
    }


def _transposed_weight(ending):
    def linear(self, x, name):
        if not name.endswith(ending):
            return Port.linear(self, x, name)
        return x @ self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    return linear


def _without_bias(ending):
    def linear(self, x, name):
        y = Port.linear(self, x, name)
        return y - self.p[f"{name}.bias"] if name.endswith(ending) else y

    return linear


def _update(change):
    """AdamW, with other settings or another formula: change(self, name, g, t, p, m, v)."""

    def update(self, name, g, t):
        change(self, self.settings, g, t, self.p[name], self.m[name], self.v[name])

    return update


def _adamw(s, g, t, p, m, v, *, lr=None, beta2=None, decay=None, root=None, corrected=True, after=False):
    lr, beta2, decay = lr or s.lr, beta2 or s.beta2, s.weight_decay if decay is None else decay
    if not after:
        p -= lr * decay * p
    m += (1 - s.beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    m_hat, v_hat = (m / (1 - s.beta1**t), v / (1 - beta2**t)) if corrected else (m, v)
    p -= lr * m_hat / (torch.sqrt(v_hat) + s.eps if root is None else root(v_hat))
    if after:
        p -= lr * decay * p


def _of_adamw(**options):
    return {"update": _update(lambda self, s, g, t, p, m, v: _adamw(s, g, t, p, m, v, **options))}


def _sum(self, logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def _gradient(ending, change):
    def gradient(self, name):
        g = Port.gradient(self, name)
        return change(self, g) if name.endswith(ending) else g

    return gradient


def _in_row_0(self, g):
    wrong = torch.zeros_like(g)
    wrong[0] = g.sum(0)
    return wrong


FORESEEN = {
    "softmax over the queries": ({"softmax": lambda self, s: torch.softmax(s, 2)}, "softmax is over the queries"),
    "a token sees the next": ({"mask": _masked_from(2)}, "a token sees the one after it"),
    "masked scores of -1e9": ({"mask": _masked_from(1, -1e9)}, r"-1e\+09 where a score is masked"),
    "positions begin at one": ({"positions": lambda self, T: torch.arange(T) + 1}, "the first token has position 1"),
    "residual after norm1": ({"block": _block(first="norm")}, "norm1's output, not its input"),
    "residual after norm2": ({"block": _block(second="norm")}, "norm2's output, not its input"),
    "residual of the block": ({"block": _block(second="input")}, "the block's input, not the residual"),
    "feed-forward beside attention": ({"block": _block(feeds="input")}, "norm2 reads the block's input"),
    "dropout not scaled": ({"dropout": _dropout_scaled(lambda p: 1)}, "does not divide what it keeps"),
    "dropout scaled by 1 - p": ({"dropout": _dropout_scaled(lambda p: 1 - p)}, "multiplies what it keeps"),
    "norm without shift": ({"norm": _without_shift}, "shift is not added"),
    "norm over the tokens": ({"norm": _normalized_over(1)}, "over the tokens"),
    "norm of unbiased variance": ({"norm": _norm_with(correction=1)}, "divides by D - 1"),
    "norm with eps 1e-2": ({"norm": _norm_with(eps=1e-2)}, "eps is 0.01, not 1e-05"),
    "decay in the gradient": (
        _of_adamw(decay=0.0) | {"gradient": lambda self, name: self.p[name].grad + 0.1 * self.p[name]},
        "plus 0.1 times your|decay is part of the gradient",
    ),
    "no bias correction": (_of_adamw(corrected=False), "does not correct its moments"),
    "beta2 of 0.9": (_of_adamw(beta2=0.9), "beta2 is 0.9, not 0.999"),
    "eps inside the root": (_of_adamw(root=lambda v: torch.sqrt(v + 1e-8)), "eps is inside of the root"),
    "learning rate of a schedule's other step": (_of_adamw(lr=0.00085), "lr is 0.00085, not 0.001"),
    "weight decay of 0.03": (_of_adamw(decay=0.03), "weight_decay is 0.03, not 0.1"),
    "decay after the step": (_of_adamw(after=True), "decay comes after the step"),
    "heads in the reverse order": (
        {"split": lambda self, x: Port.split(self, x).flip(1)},
        "heads in the reverse order",
    ),
    "keys and values exchanged": (_with_weights_of({"W_key": "W_value", "W_value": "W_key"}), "query, value, key"),
    "queries and keys exchanged": (_with_weights_of({"W_query": "W_key", "W_key": "W_query"}), "key, query, value"),
    "GELU by a sigmoid": ({"activation": lambda self, x: x * torch.sigmoid(1.702 * x)}, r"sigmoid\(1.702 x\)"),
    "GELU of erf": ({"activation": lambda self, x: F.gelu(x)}, "erf"),
    "no bias in the last layer": ({"linear": _without_bias("layers.2")}, "layers.2.bias is not added"),
    "output projection transposed": ({"linear": _transposed_weight("out_proj")}, "out_proj's weight are exchanged"),
    "loss summed": ({"loss": _sum}, "the sum over the targets"),
    "second block with the first's weights": (_with_weights_of({"blocks.1": "blocks.0"}), "weights of block 0"),
    "norm2 with norm1's weights": (_with_weights_of({"norm2": "norm1"}), "weights of norm1"),
    "final norm skipped": (
        {"norm": lambda self, x, name: x * 1 if name == "final_norm" else Port.norm(self, x, name)},
        "without the final norm",
    ),
    "embeddings scaled": (
        {"embedded": lambda self, ids: Port.embedded(self, ids) * math.sqrt(self.config.emb_dim)},
        r"multiplied by sqrt\(D\)",
    ),
    "scores not scaled": ({"scores": lambda self, q, k: q @ k.transpose(2, 3)}, r"not divided by sqrt\(K\)"),
    "gradients of row 0": (
        {"gradient": _gradient("ff.layers.0.weight", _in_row_0)},
        "has the sum of all its rows in number 0, and zero elsewhere",
    ),
    "gradients accumulate": ({"zero_grad": lambda self: None}, "plus your `d_"),
    "gradient transposed": (
        {"gradient": _gradient("out_proj.weight", lambda self, g: g.T)},
        "has its last two axes exchanged",
    ),
    "two tokens of the future": ({"mask": _masked_from(3)}, r"the last key that a query sees is at \+2, not at \+0"),
    "embedding's rows off by one": (
        {"embedded": lambda self, ids: self.p["tok_emb.weight"][(ids + 1) % self.config.vocab_size]},
        r"has the rows .* of your `tok_emb.weight`",
    ),
}

HELD_OUT = {
    "scores of sqrt(T)": (
        {"scores": lambda self, q, k: q @ k.transpose(2, 3) / math.sqrt(q.shape[2])},
        r"is 0.8164\d+ times what its inputs lead to",
    ),
    "a gate in the feed-forward network": (
        {"activation": lambda self, x: F.gelu(x, approximate="tanh") * torch.sigmoid(x)},
        "gate",
    ),
    "logits with temperature 0.7": ({"next_logits": lambda self, logits: logits[-1] / 0.7}, "is 1.42857 times"),
    "positions from the end": (
        {"positions": lambda self, T: torch.arange(T).flip(0)},
        "last token has position 0|reverse",
    ),
    "beta1 of 0.95": (
        {"update": _update(lambda self, s, g, t, p, m, v: _adamw(s._replace(beta1=0.95), g, t, p, m, v))},
        "beta1 is 0.95, not 0.9|is 0.5 times",
    ),
    "the bias's gradient is a mean over the tokens of one text": (
        {"gradient": _gradient("W_query.bias", lambda self, g: g / 6)},
        "is 0.166667 times what its inputs lead to; 0.166667 is 1 / T",
    ),
    "scale of norm1 frozen": (
        {"update": lambda self, name, g, t: Port.update(self, name, g, t) if "norm1.scale" not in name else None},
        "is zero",
    ),
    "head with the embedding's weights": (
        {"head": lambda self, hidden: hidden @ self.p["tok_emb.weight"].T},
        "the head has the weights of the token embedding",
    ),
    "softplus": ({"activation": lambda self, x: F.softplus(x)}, "softplus"),
    "values without their bias": (
        {"linear": _without_bias("W_value")},
        "W_value.bias is not added",
    ),
    "residual scaled by 1/sqrt(2)": (
        {"dropout": lambda self, x, site: Port.dropout(self, x, site) * (2**-0.5 if "drop_att" in site else 1)},
        "is 0.707107 times",
    ),
    "gradients of the embedding for the last text alone": (
        {"loss": lambda self, logits, targets: F.cross_entropy(logits[-1], targets[-1])},
        "the last text alone",
    ),
}


def port(methods):
    """A subclass of the port with these methods."""
    return type("Mistaken", (Port,), methods)
