"""The bridge between NumPy and PyTorch: the twin of a model, name by name, and given dropout masks in a PyTorch model.

Twins share memory, so an optimizer step on one changes the other too. With `copy=True` they do not share it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from numpygpt.errors import InputError
from numpygpt.model.body import DropoutMasks
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel as NumpyGPTModel
from numpygpt.model.initialization import allocate
from numpygpt.shapes import Array
from numpygpt.tree import mapped_by_name, named
from torchgpt.model import GELUErf, GPTModel, SinusoidalPositions

DTYPES = ("float32", "float64")


def to_torch(numpy_model: NumpyGPTModel, *, copy: bool = False, attention: str = "math") -> GPTModel:
    """The PyTorch twin of a NumPy model, on the CPU.

    It is in evaluation mode, because a NumPy model too drops nothing unless it is asked to.
    Without `copy`, the parameters use the memory of the NumPy arrays (a read-only array is copied). Nothing is
    drawn from PyTorch's random generator.

    Raises InputError for parameters that are neither float32 nor float64.
    """
    tensors = tensors_of(numpy_model, copy=copy)
    with torch.random.fork_rng(devices=[]):  # the weights that it draws are replaced at once
        torch_model = GPTModel(numpy_model.config, attention)
    torch_model.load_state_dict(tensors, assign=True)
    return torch_model.eval()


def tensors_of(numpy_model: NumpyGPTModel, *, copy: bool = False) -> dict[str, Tensor]:
    """The model's state dict in PyTorch's tensors, which use the memory of the arrays as in `to_torch`.

    Raises InputError for parameters that are neither float32 nor float64.
    """
    arrays = numpy_model.state_dict()
    _check_dtypes({name: str(array.dtype) for name, array in arrays.items()})
    return {
        name: torch.from_numpy(array.copy() if copy or not array.flags.writeable else array)
        for name, array in arrays.items()
    }


def to_numpy(torch_model: nn.Module, *, copy: bool = False) -> NumpyGPTModel:
    """The NumPy twin of a `torchgpt.GPTModel`, or of a model that is made of the book's own classes.

    Without `copy`, the parameters use the memory of the tensors, except that tensors on another device are copied to
    the CPU. PyTorch keeps the weights of queries, keys and values apart, so a twin that shares them takes three
    products. A copy has them in one array, and takes one product.

    Raises InputError for a model whose parameters have other names (missing and unexpected ones are listed),
    and for parameters that are not all float32 or all float64.
    """
    tensors = {name: tensor for name, tensor in torch_model.state_dict().items() if not name.endswith(".att.mask")}
    _check_names(list(tensors), torch_model)
    _check_dtypes({name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()})
    arrays = {name: tensor.numpy(force=True) for name, tensor in tensors.items()}
    numpy_model = NumpyGPTModel.from_state_dict(_config_of(torch_model), arrays)
    if not copy:
        if numpy_model.config.tie_weights:
            arrays["out_head.weight"] = arrays["tok_emb.weight"]
        numpy_model.parameters = mapped_by_name(lambda name, _: arrays[name], numpy_model.parameters)
    return numpy_model


@contextmanager
def dropout_masks(torch_model: GPTModel, masks: DropoutMasks) -> Iterator[GPTModel]:
    """Within the `with`, the model's dropouts keep what `masks` says, in training and in evaluation mode.

    `masks` is a `numpygpt.model.body.DropoutMasks`, as NumPy's forward takes it: `.embedding` (B, T, D), and for
    each block `.blocks[i].attention` (B, H, T, T), `.after_attention` and `.after_feed_forward` (B, T, D). A mask
    holds booleans, which are True for the elements that stay; None keeps all. Each forward uses each mask once.

    Raises InputError for a model with attention="sdpa", whose kernel draws its own mask.
    """
    sites: list[tuple[nn.Module, str, list[Any]]] = [(torch_model, "drop_emb", [masks.embedding])]
    block: Any  # a TransformerBlock; nn.Sequential does not know
    for block, kept in zip(torch_model.trf_blocks, masks.blocks, strict=True):
        if block.att.attention == "sdpa":
            raise InputError(
                'the model has attention="sdpa", whose kernel draws its own dropout mask; '
                'give masks to a model with attention="math"'
            )
        sites.append((block.att, "dropout", [kept.attention]))
        sites.append((block, "drop_shortcut", [kept.after_attention, kept.after_feed_forward]))
    sampling = [(module, name, getattr(module, name)) for module, name, _ in sites]
    for module, name, keeps in sites:
        setattr(module, name, _GivenDropout(keeps, torch_model.config.drop_rate))
    try:
        yield torch_model
    finally:
        for module, name, dropout in sampling:
            setattr(module, name, dropout)


class _GivenDropout(nn.Module):
    """Dropout by given masks, taken in turn, one for each call: a block calls `drop_shortcut` at two sites."""

    def __init__(self, keeps: Sequence[Array | Tensor | None], drop_rate: float):
        super().__init__()
        self.keeps = cycle(keeps)
        self.scale = 1 / (1 - drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        keep = next(self.keeps)
        return x if keep is None else x * torch.as_tensor(keep, device=x.device) * self.scale


def _check_dtypes(dtypes: Mapping[str, str]) -> None:
    """Raise InputError unless all parameters have one dtype, float32 or float64."""
    expected = next(iter(dtypes.values()))
    if expected not in DTYPES:
        expected = " or ".join(DTYPES)
    for name, dtype in dtypes.items():
        if dtype != expected:
            raise InputError(f"{name} is {dtype}; expected {expected}: convert the whole model first")


def _check_names(names: list[str], torch_model: nn.Module) -> None:
    """Raise InputError unless these are the parameter names of a GPT with as many blocks as they mention."""
    blocks = {name.split(".")[1] for name in names if name.startswith("trf_blocks.")}
    smallest = GPTConfig(
        vocab_size=1,
        context_length=1,
        emb_dim=2,
        n_heads=1,
        n_layers=max(1, len(blocks)),
        drop_rate=0.0,
        qkv_bias=any(name.endswith(".att.W_query.bias") for name in names),
        position=_position_of(torch_model),
        bias="final_norm.shift" in names,
        classes=1 if "out_head.bias" in names else None,
    )
    expected = [name for name, _ in named(allocate(smallest, np.float32))]
    missing = [name for name in expected if name not in names]
    unexpected = [name for name in names if name not in expected]
    if missing or unexpected:
        raise InputError(
            f"the parameters of this {type(torch_model).__name__} are not a GPTModel's: "
            f"missing: {', '.join(missing) or 'none'}; unexpected: {', '.join(unexpected) or 'none'}; "
            f"rename them first"
        )


def _config_of(torch_model: Any) -> GPTConfig:
    """The configuration of a model that is made of the book's classes or ours, found from its modules."""
    attention = torch_model.trf_blocks[0].att
    return GPTConfig(
        vocab_size=torch_model.tok_emb.num_embeddings,
        context_length=torch_model.pos_emb.num_embeddings,
        emb_dim=torch_model.tok_emb.embedding_dim,
        n_heads=attention.num_heads,
        n_layers=len(torch_model.trf_blocks),
        drop_rate=torch_model.drop_emb.p,
        qkv_bias=attention.W_query.bias is not None,
        tie_weights=torch_model.out_head.weight is torch_model.tok_emb.weight,
        position=_position_of(torch_model),
        activation=_activation_of(torch_model.trf_blocks[0].ff.layers[1]),
        bias=torch_model.final_norm.shift is not None,
        norm_eps=torch_model.final_norm.eps,
        classes=None if torch_model.out_head.bias is None else torch_model.out_head.out_features,
    )


def _activation_of(module: nn.Module) -> str:
    """The form of GELU that a module computes: one of ours, the book's own class, or PyTorch's, which has both forms.

    Raises InputError for a module that is no GELU.
    """
    if isinstance(module, GELUErf) or (isinstance(module, nn.GELU) and module.approximate == "none"):
        return "gelu_erf"
    if type(module).__name__ == "GELU":
        return "gelu_tanh"
    raise InputError(f"the activation is a {type(module).__name__}; expected a GELU")


def _position_of(torch_model: nn.Module) -> str:
    return "sinusoidal" if isinstance(getattr(torch_model, "pos_emb", None), SinusoidalPositions) else "learned"
