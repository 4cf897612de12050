"""Quantized projections on the PyTorch twin, by the library bitsandbytes, which keeps them packed on CUDA, too.

Its layers get the codes and constants that NumPy has found. So they stand for the same values, wherever they are.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from numpygpt.adapt.quantized import quantized_projections
from numpygpt.errors import InputError
from numpygpt.layers.parameters import QuantizedLinear
from numpygpt.model.gpt import GPTModel
from numpygpt.numerics import fp4, nf4
from numpygpt.numerics.codebook import Codebook
from numpygpt.shapes import Array

#: What bitsandbytes has a layer for: its name of the levels, and the sizes of blocks that its kernels know.
LEVELS = {"nf4": nf4.LEVELS, "fp4": fp4.LEVELS}
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def has_layers_for(model: GPTModel) -> bool:
    """Whether bitsandbytes has a layer for every quantized projection of the model, in its number format.

    It computes in float32, bfloat16 and float16, and not in float64.
    """
    return model.dtype == np.float32 and all(
        _kind_of(node.weight) is not None and node.weight.block_size in BLOCK_SIZES
        for node in quantized_projections(model).values()
    )


def put_layers(torch_model: Any, model: GPTModel, compute_dtype: torch.dtype) -> None:
    """Put a layer of bitsandbytes in the place of each projection that is quantized in the NumPy model.

    torch_model     the twin, with whole matrices; a layer keeps the twin's bias
    compute_dtype   of the products

    Raises InputError if bitsandbytes is not installed. The model is one for which `has_layers_for` says yes.
    """
    nodes = quantized_projections(model)
    library = bitsandbytes_library() if nodes else None
    for name, node in nodes.items():
        parent, _, own_name = name.rpartition(".")
        layer = _layer(library, node, compute_dtype)
        layer.bias = torch_model.get_submodule(name).bias
        torch_model.get_submodule(parent).add_module(own_name, layer)
    torch_model.is_loaded_in_4bit = bool(nodes)  # by this name peft knows that it has to look for such layers


def bitsandbytes_library() -> Any:
    """The library bitsandbytes. InputError, with the command that installs it, if it is not there."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise InputError(
            f"nf4 and fp4 matrices in torchgpt need bitsandbytes ({error}); install it with: pip install bitsandbytes"
        ) from error
    return bitsandbytes


def _layer(library: Any, node: QuantizedLinear, compute_dtype: torch.dtype) -> Any:
    """A layer without a bias. Its memory is that of the codes: the whole matrix never exists."""
    weight = node.weight
    assert isinstance(weight, Codebook)
    outputs, inputs = weight.shape
    with torch.device("meta"):
        layer = library.nn.Linear4bit(inputs, outputs, bias=False, compute_dtype=compute_dtype)
    state = _state_of(library, weight)
    layer.weight = library.nn.Params4bit(
        _tensor(weight.codes).reshape(-1, 1),
        requires_grad=False,
        quant_state=state,
        blocksize=state.blocksize,
        compress_statistics=state.nested,
        quant_type=state.quant_type,
        bnb_quantized=True,
    )
    layer.quant_state = state
    # On a CPU with AVX512-BF16, the first evaluation would repack the codes for good, and round their constants to
    # bfloat16. A backward through such a layer is not possible.
    layer.support_avx512bf16_for_cpu = False
    return layer


def _state_of(library: Any, weight: Codebook) -> Any:
    """The constants of an array's blocks, in the form of bitsandbytes."""
    kinds = {
        "shape": torch.Size(weight.shape),
        "code": _tensor(weight.levels),
        "blocksize": weight.block_size,
        "quant_type": _kind_of(weight),
        "dtype": torch.float32,
    }
    state = library.functional.QuantState
    if isinstance(weight.absmax, np.ndarray):
        return state(_tensor(weight.absmax), **kinds)
    rest, mean = weight.absmax
    second = state(_tensor(rest.absmax), code=_tensor(rest.levels), blocksize=rest.block_size, dtype=torch.float32)
    return state(_tensor(rest.codes), **kinds, offset=_tensor(mean)[0], state2=second)


def _kind_of(weight: Any) -> str | None:
    """The name of the levels that the array's codes stand for; None for those that bitsandbytes does not have."""
    if not isinstance(weight, Codebook):
        return None
    return next((kind for kind, levels in LEVELS.items() if np.array_equal(levels, weight.levels)), None)


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array))
