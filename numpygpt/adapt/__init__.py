"""Models made of models: with adapters, with frozen parameters, with quantized weights.

Each function returns a new model, which shares the arrays that it does not change with the one it was given.
"""

from numpygpt.adapt.adapters import add_lora, merge_lora, remove_lora, unmerge_lora
from numpygpt.adapt.book import replace_linear_with_lora
from numpygpt.adapt.files import load_adapter, save_adapter
from numpygpt.adapt.freeze import freeze, unfreeze
from numpygpt.adapt.head import class_head
from numpygpt.adapt.quantized import dequantize, quantize
from numpygpt.adapt.vocabulary import resize_embeddings

__all__ = [
    "add_lora",
    "class_head",
    "dequantize",
    "freeze",
    "load_adapter",
    "merge_lora",
    "quantize",
    "remove_lora",
    "replace_linear_with_lora",
    "resize_embeddings",
    "save_adapter",
    "unfreeze",
    "unmerge_lora",
]
