"""torchgpt, the PyTorch twin of numpygpt: the book's model and functions on tensors, with numpygpt's names.

    import torch
    from torchgpt import GPT_CONFIG_124M, GPTModel

    torch.manual_seed(123)
    model = GPTModel(GPT_CONFIG_124M)              # the book's weights

`torchgpt.model` is the model. The book's functions are in `torchgpt.generation`, `torchgpt.training`,
`torchgpt.classifier`, `torchgpt.instructions` and `torchgpt.lora`. `torchgpt.bridge` turns a numpygpt model into a
torchgpt model and back.

Importing torchgpt is quick: each name is imported from its module when it is used, and PyTorch is loaded only then.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec("torch") is None:
    raise ImportError("torchgpt needs PyTorch, which is not installed: pip install 'numpygpt[torch]'")

if TYPE_CHECKING:
    from numpygpt.data.book_instructions import InstructionDataset as InstructionDataset
    from numpygpt.data.book_instructions import create_balanced_dataset as create_balanced_dataset
    from numpygpt.data.book_instructions import extract_response as extract_response
    from numpygpt.data.book_instructions import format_input as format_input
    from numpygpt.data.book_instructions import random_split as random_split
    from numpygpt.formats.openai import assign as assign
    from numpygpt.formats.openai import download_and_load_gpt2 as download_and_load_gpt2
    from numpygpt.formats.openai import load_weights_into_gpt as load_weights_into_gpt
    from numpygpt.model.config import GPT_CONFIG_124M as GPT_CONFIG_124M
    from numpygpt.model.config import GPTConfig as GPTConfig
    from numpygpt.pictures.losses import plot_values as plot_values
    from torchgpt.bridge import dropout_masks as dropout_masks
    from torchgpt.bridge import to_numpy as to_numpy
    from torchgpt.bridge import to_torch as to_torch
    from torchgpt.classifier import SpamDataset as SpamDataset
    from torchgpt.classifier import calc_accuracy_loader as calc_accuracy_loader
    from torchgpt.classifier import classify_review as classify_review
    from torchgpt.classifier import train_classifier_simple as train_classifier_simple
    from torchgpt.generation import generate as generate
    from torchgpt.generation import generate_text_simple as generate_text_simple
    from torchgpt.generation import print_sampled_tokens as print_sampled_tokens
    from torchgpt.generation import softmax_with_temperature as softmax_with_temperature
    from torchgpt.generation import text_to_token_ids as text_to_token_ids
    from torchgpt.generation import token_ids_to_text as token_ids_to_text
    from torchgpt.instructions import custom_collate_fn as custom_collate_fn
    from torchgpt.lora import LinearWithLoRA as LinearWithLoRA
    from torchgpt.lora import LoRALayer as LoRALayer
    from torchgpt.lora import replace_linear_with_lora as replace_linear_with_lora
    from torchgpt.model import GPTModel as GPTModel
    from torchgpt.training import calc_loss_batch as calc_loss_batch
    from torchgpt.training import calc_loss_loader as calc_loss_loader
    from torchgpt.training import create_dataloader_v1 as create_dataloader_v1
    from torchgpt.training import evaluate_model as evaluate_model
    from torchgpt.training import find_highest_gradient as find_highest_gradient
    from torchgpt.training import generate_and_print_sample as generate_and_print_sample
    from torchgpt.training import plot_losses as plot_losses
    from torchgpt.training import train_model as train_model
    from torchgpt.training import train_model_simple as train_model_simple

#: {module: the names that are imported from it}
_NAMES = {
    "numpygpt.data.book_instructions": (
        "InstructionDataset",
        "create_balanced_dataset",
        "extract_response",
        "format_input",
        "random_split",
    ),
    "numpygpt.formats.openai": ("assign", "download_and_load_gpt2", "load_weights_into_gpt"),
    "numpygpt.model.config": ("GPT_CONFIG_124M", "GPTConfig"),
    "numpygpt.pictures.losses": ("plot_values",),
    "torchgpt.bridge": ("dropout_masks", "to_numpy", "to_torch"),
    "torchgpt.classifier": (
        "SpamDataset",
        "calc_accuracy_loader",
        "classify_review",
        "train_classifier_simple",
    ),
    "torchgpt.generation": (
        "generate",
        "generate_text_simple",
        "print_sampled_tokens",
        "softmax_with_temperature",
        "text_to_token_ids",
        "token_ids_to_text",
    ),
    "torchgpt.instructions": ("custom_collate_fn",),
    "torchgpt.lora": ("LinearWithLoRA", "LoRALayer", "replace_linear_with_lora"),
    "torchgpt.model": ("GPTModel",),
    "torchgpt.training": (
        "calc_loss_batch",
        "calc_loss_loader",
        "create_dataloader_v1",
        "evaluate_model",
        "find_highest_gradient",
        "generate_and_print_sample",
        "plot_losses",
        "train_model",
        "train_model_simple",
    ),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """The object of that name, from its module (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
