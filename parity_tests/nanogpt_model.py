"""nanoGPT's model written anew in PyTorch, with the names, the order and the mathematics of its model.py.

It follows https://github.com/karpathy/nanoGPT and shares nothing with the code under test.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class NanoGPTConfig:
    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True


class Norm(nn.Module):
    def __init__(self, width, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, config, *, with_mask):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        if with_mask:  # what nanoGPT keeps, in each block, if PyTorch is older than 2
            seen = torch.tril(torch.ones(config.block_size, config.block_size))
            self.register_buffer("bias", seen.view(1, 1, config.block_size, config.block_size))

    def forward(self, x):
        queries, keys, values = (
            part.unflatten(2, (self.n_head, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=2)
        )
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        weights = scores.masked_fill(~seen, -math.inf).softmax(dim=-1)
        return self.c_proj((weights @ values).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config, *, with_mask):
        super().__init__()
        self.ln_1 = Norm(config.n_embd, config.bias)
        self.attn = Attention(config, with_mask=with_mask)
        self.ln_2 = Norm(config.n_embd, config.bias)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    def __init__(self, config, *, with_mask=False):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "h": nn.ModuleList(Block(config, with_mask=with_mask) for _ in range(config.n_layer)),
                "ln_f": Norm(config.n_embd, config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, ids):
        x = self.transformer.wte(ids) + self.transformer.wpe(torch.arange(ids.shape[1]))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


def train_py(model, config, **changes):
    """What nanoGPT's train.py puts into ckpt.pt."""
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "model_args": dict(vars(config)),
        "iter_num": 7,
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out", "dataset": "openwebtext", "learning_rate": 6e-4, "compile": True},
        **changes,
    }


def sample_py(path):
    """What nanoGPT's sample.py does with ckpt.pt: the model, whose names must fit strictly."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model = NanoGPT(NanoGPTConfig(**checkpoint["model_args"]))
    state_dict = checkpoint["model"]
    model.to(state_dict["lm_head.weight"].dtype)
    for name in list(state_dict):
        if name.startswith("_orig_mod."):
            state_dict[name[len("_orig_mod.") :]] = state_dict.pop(name)
    model.load_state_dict(state_dict)
    assert "dataset" not in checkpoint["config"], "sample.py would look for that data set's meta.pkl"
    return model.eval()
