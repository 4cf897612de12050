"""Adapters on the PyTorch twin, by the library peft, which is what trains them on CUDA."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from numpygpt.adapt.adapters import adapter_names, paths_of, remove_lora
from numpygpt.adapt.files import adapter_of
from numpygpt.adapt.quantized import dequantize
from numpygpt.errors import InputError
from numpygpt.formats.peft_folder import peft_config
from numpygpt.model.gpt import GPTModel as NumpyGPTModel
from torchgpt.bridge import to_torch

if TYPE_CHECKING:
    from peft import PeftModel


def to_peft(numpy_model: NumpyGPTModel) -> "PeftModel":
    """The PyTorch twin of a NumPy model with adapters: a PeftModel, in which they all are active and alone trained.

    The arrays are copied, and quantized matrices are whole ones of the same values. Its parameters have peft's names:
    ours begin with `base_model.model.`, and a weight with a path beside it is `base_layer.weight`. It is in evaluation
    mode.

    Raises InputError if peft is not installed, if the model has no adapter, and if it has a merged one.
    """
    if any(node.merged for _, node in paths_of(numpy_model)):
        raise InputError("the model's adapter is merged into its weights; take it out with unmerge_lora")
    return with_adapters(to_torch(dequantize(remove_lora(numpy_model)), copy=True), numpy_model)


def with_adapters(base: nn.Module, numpy_model: NumpyGPTModel) -> "PeftModel":
    """The PyTorch twin of a NumPy model's base, with the adapters of the NumPy model put into it, as a PeftModel.

    The base's own projections become peft's. It may have layers of bitsandbytes. Raises InputError as `to_peft`.
    """
    peft = peft_library()
    names = adapter_names(numpy_model)
    for number, name in enumerate(names):
        adapter = adapter_of(numpy_model, name)
        config = peft.LoraConfig(**peft_config(adapter.paths, adapter.drop_rate))
        config.inference_mode = False
        if number == 0:
            model = peft.get_peft_model(base, config, name)
        else:
            model.add_adapter(name, config)
    model.base_model.set_adapter(names)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in numpy_model.named_parameters().items():
            if ".lora_" in name:
                own[f"base_model.model.{name}"].copy_(torch.from_numpy(array))
    return model.eval()


def peft_library() -> Any:
    """The library peft. InputError, with the command that installs it, if it is not there."""
    try:
        import peft
    except ImportError as error:
        raise InputError(f"adapters in torchgpt need peft ({error}); install it with: pip install peft") from error
    return peft
