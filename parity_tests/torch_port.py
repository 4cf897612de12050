"""A port of the model to PyTorch, as somebody might write it, whose lines can be replaced by wrong ones.

It shares no code with ours. Autograd differentiates it, so that whatever is wrong in its forward has its true gradient.
A subclass is a port with a mistake.
"""

import math

import torch
import torch.nn.functional as F

from numpygpt.checks.trace import KEEP, is_parameter


class Port:
    """The trace of a model with biases and learned positions.

    given   what the trace gives: parameters, inputs, targets, masks, prompt
    """

    def __init__(self, config, settings, given):
        self.config, self.settings = config, settings
        self.given = {name: torch.tensor(array) for name, array in given.items()}
        names = [name for name in self.given if is_parameter(name)]
        self.p = {name: self.given[name].double().requires_grad_() for name in names}
        self.m = {name: torch.zeros_like(self.p[name]) for name in names}
        self.v = {name: torch.zeros_like(self.p[name]) for name in names}
        self.told, self.tensors, self.training = {}, {}, True

    def tell(self, name, tensor):
        if self.training:
            tensor.retain_grad()
        self.told[name] = tensor
        return tensor

    # The parts

    def norm(self, x, name):
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        normalized = (x - mean) / torch.sqrt(variance + self.config.norm_eps)
        return self.p[f"{name}.scale"] * normalized + self.p[f"{name}.shift"]

    def linear(self, x, name):
        y = x @ self.p[f"{name}.weight"].T
        return y + self.p[f"{name}.bias"] if f"{name}.bias" in self.p else y

    def dropout(self, x, site):
        rate = self.config.drop_rate
        return x * self.given[f"{KEEP}{site}"] / (1 - rate) if rate and self.training else x.clone()

    def positions(self, T):
        return torch.arange(T)

    def embedded(self, ids):
        return self.p["tok_emb.weight"][ids]

    def split(self, x):
        B, T, _ = x.shape
        return x.view(B, T, self.config.n_heads, -1).transpose(1, 2)

    def merge(self, x):
        B, _, T, _ = x.shape
        return x.transpose(1, 2).reshape(B, T, -1)

    def scores(self, queries, keys):
        return queries @ keys.transpose(2, 3) / math.sqrt(self.config.head_dim)

    def mask(self, scores):
        T = scores.shape[-1]
        return scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)

    def softmax(self, scores):
        return torch.softmax(scores, -1)

    def context(self, weights, values):
        return weights @ values

    def attention(self, x, name):
        tell = self.tell
        queries = tell(f"{name}.queries", self.split(self.linear(x, f"{name}.W_query")))
        keys = tell(f"{name}.keys", self.split(self.linear(x, f"{name}.W_key")))
        values = tell(f"{name}.values", self.split(self.linear(x, f"{name}.W_value")))
        scores = tell(f"{name}.attn_scores", self.mask(self.scores(queries, keys)))
        weights = tell(f"{name}.attn_weights", self.softmax(scores))
        dropped = tell(f"{name}.dropout", self.dropout(weights, f"{name}.dropout"))
        context = tell(f"{name}.context_vec", self.merge(self.context(dropped, values)))
        return tell(f"{name}.out_proj", self.linear(context, f"{name}.out_proj"))

    def activation(self, x):
        return F.gelu(x, approximate="tanh")

    def feed_forward(self, x, name):
        hidden = self.tell(f"{name}.layers.0", self.linear(x, f"{name}.layers.0"))
        activated = self.tell(f"{name}.layers.1", self.activation(hidden))
        return self.tell(f"{name}.layers.2", self.linear(activated, f"{name}.layers.2"))

    def block(self, x, name):
        normed = self.tell(f"{name}.norm1", self.norm(x, f"{name}.norm1"))
        attended = self.attention(normed, f"{name}.att")
        attended = self.tell(f"{name}.drop_att", self.dropout(attended, f"{name}.drop_att"))
        residual = self.tell(f"{name}.residual", x + attended)
        normed = self.tell(f"{name}.norm2", self.norm(residual, f"{name}.norm2"))
        fed = self.tell(f"{name}.drop_ff", self.dropout(self.feed_forward(normed, f"{name}.ff"), f"{name}.drop_ff"))
        return self.tell(name, residual + fed)

    def forward(self, ids):
        tokens = self.tell("tok_emb", self.embedded(ids))
        located = self.tell("pos_emb", self.p["pos_emb.weight"][self.positions(ids.shape[1])])
        x = self.tell("drop_emb", self.dropout(tokens + located, "drop_emb"))
        for i in range(self.config.n_layers):
            x = self.block(x, f"trf_blocks.{i}")
        return self.tell("logits", self.head(self.tell("final_norm", self.norm(x, "final_norm"))))

    def head(self, hidden):
        return hidden @ self.p["out_head.weight"].T

    def loss(self, logits, targets):
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def gradient(self, name):
        """Of a parameter, before the optimizer sees it."""
        return self.p[name].grad

    def update(self, name, g, t):
        s, p, m, v = self.settings, self.p[name], self.m[name], self.v[name]
        p -= s.lr * s.weight_decay * p
        m += (1 - s.beta1) * (g - m)
        v += (1 - s.beta2) * (g * g - v)
        p -= s.lr * (m / (1 - s.beta1**t)) / (torch.sqrt(v / (1 - s.beta2**t)) + s.eps)

    def zero_grad(self):
        for p in self.p.values():
            p.grad = None

    # The trace

    def trace(self):
        """{name: array} of all that is computed."""
        generated = self.generate()
        for t in range(1, self.settings.steps + 1):
            self.step(t)
        return {name: tensor.detach().numpy() for name, tensor in {**self.tensors, **generated}.items()}

    def step(self, t):
        self.zero_grad()
        self.told = {}
        logits = self.forward(self.given["inputs"])
        loss = self.loss(logits, self.given["targets"])
        loss.backward()
        before = f"step{t}."
        if t == 1:
            used = {name: tensor for name, tensor in self.told.items() if tensor.grad is not None}
            self.tensors |= {name: tensor.detach().clone() for name, tensor in self.told.items()}
            self.tensors |= {f"d_{name}": tensor.grad.clone() for name, tensor in used.items()}
        self.tensors["loss" if t == 1 else f"{before}loss"] = loss
        with torch.no_grad():
            for name in [name for name in self.p if self.p[name].grad is not None]:
                g = self.gradient(name)
                self.tensors[f"d_{name}" if t == 1 else f"{before}d_{name}"] = g.clone()
                self.update(name, g, t)
                self.tensors |= {
                    f"{before}exp_avg.{name}": self.m[name].clone(),
                    f"{before}exp_avg_sq.{name}": self.v[name].clone(),
                    f"{before}{name}": self.p[name].clone(),
                }

    def generate(self):
        self.training = False
        ids, rows, chosen = self.given["generated.prompt"], [], []
        with torch.no_grad():
            for _ in range(self.settings.new_tokens):
                rows.append(self.next_logits(self.forward(ids[None])[0]))
                chosen.append(self.choose(rows[-1]))
                ids = torch.cat([ids, chosen[-1][None]])
        self.training = True
        return {"generated.logits": torch.stack(rows), "generated.tokens": torch.stack(chosen)}

    def next_logits(self, logits):
        return logits[-1]

    def choose(self, logits):
        return logits.argmax()
