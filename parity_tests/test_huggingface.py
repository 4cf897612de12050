"""A second oracle that shares no code with ours: Hugging Face's GPT-2, with random weights and no download."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from numpygpt.checks.compare import compare, normwise
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.ops.cross_entropy import IGNORE_INDEX

CONFIG = GPTConfig(
    vocab_size=13,
    context_length=9,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.0,
    qkv_bias=True,
    tie_weights=True,
)
B, T = 3, 7
#: Their activation and eps, and what is ours for them.
VARIANTS = {
    "GPT-2": ("gelu_new", CONFIG),
    "exact GELU, a large eps": ("gelu", replace(CONFIG, activation="gelu_erf", norm_eps=0.1)),
}


def huggingface_model(seed, activation, norm_eps):
    """A model with random weights without symmetries; its norms scale and shift."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=CONFIG.vocab_size,
        n_positions=CONFIG.context_length,
        n_embd=CONFIG.emb_dim,
        n_layer=CONFIG.n_layers,
        n_head=CONFIG.n_heads,
        activation_function=activation,
        layer_norm_epsilon=norm_eps,
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


#: (our name of a part of a block, Hugging Face's name of the same part of `transformer.h.{i}`).
BLOCK_NAMES = {
    "att.out_proj": "attn.c_proj",
    "ff.layers.0": "mlp.c_fc",
    "ff.layers.2": "mlp.c_proj",
}
NORM_NAMES = {"norm1": "ln_1", "norm2": "ln_2"}


def in_our_names(tensors):
    """Hugging Face's weights or gradients by our names. Its Conv1D has weights (inputs, outputs), q, k and v in one."""
    arrays = {name.removeprefix("transformer."): tensor.detach().numpy() for name, tensor in tensors.items()}
    ours = {
        "tok_emb.weight": arrays["wte.weight"],
        "pos_emb.weight": arrays["wpe.weight"],
        "final_norm.scale": arrays["ln_f.weight"],
        "final_norm.shift": arrays["ln_f.bias"],
    }
    for i in range(CONFIG.n_layers):
        block, theirs = f"trf_blocks.{i}", f"h.{i}"
        for kind in ("weight", "bias"):
            together = arrays[f"{theirs}.attn.c_attn.{kind}"].T
            for name, array in zip(("W_query", "W_key", "W_value"), np.split(together, 3), strict=True):
                ours[f"{block}.att.{name}.{kind}"] = array
            for name, their_name in BLOCK_NAMES.items():
                ours[f"{block}.{name}.{kind}"] = arrays[f"{theirs}.{their_name}.{kind}"].T
        for name, their_name in NORM_NAMES.items():
            ours[f"{block}.{name}.scale"] = arrays[f"{theirs}.{their_name}.weight"]
            ours[f"{block}.{name}.shift"] = arrays[f"{theirs}.{their_name}.bias"]
    return ours


def with_qkv_together(gradients):
    """The gradients of queries, keys and values as one: that of the keys' bias alone is zero, except for rounding."""
    together = dict(gradients)
    for i in range(CONFIG.n_layers):
        for kind in ("weight", "bias"):
            parts = [together.pop(f"trf_blocks.{i}.att.{name}.{kind}") for name in ("W_query", "W_key", "W_value")]
            together[f"trf_blocks.{i}.att.qkv.{kind}"] = np.concatenate(parts)
    return together


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(4))
def test_logits_loss_and_every_gradient_are_huggingfaces(seed, variant):
    activation, config = VARIANTS[variant]
    rng = np.random.default_rng(seed)
    inputs, targets = rng.integers(0, CONFIG.vocab_size, (2, B, T))
    targets[0, :2] = IGNORE_INDEX
    theirs = huggingface_model(seed, activation, config.norm_eps)
    logits = theirs(torch.from_numpy(inputs)).logits
    loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    loss.backward()
    parameters = dict(theirs.named_parameters())
    expected = with_qkv_together(in_our_names({name: parameter.grad for name, parameter in parameters.items()}))
    expected |= {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}

    model = GPTModel.from_state_dict(config, in_our_names(parameters))
    our_loss, gradients = model.loss_and_grads(inputs, targets)
    ours = {**with_qkv_together(gradients), "logits": model(inputs), "loss": np.asarray(our_loss)}
    allowed = {name: normwise(array) for name, array in expected.items()}
    found = compare(ours, expected, allowed, dtype=np.float64)
    assert not [comparison for comparison in found if not comparison.passed]
    assert set(gradients) == set(model.named_parameters())
